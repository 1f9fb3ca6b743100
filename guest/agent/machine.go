//go:build linux

package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// initSocket is where dhow-init takes orders (guest/boot documents them).
const initSocket = "/run/dhow/init.sock"

// powerOff asks init to take the machine down.
func powerOff() error { return order(initSocket, "poweroff") }

func order(socket, line string) error {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(closeTimeout)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		return err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if a := strings.TrimSpace(answer); a != "ok" {
		return fmt.Errorf("init answered %q", a)
	}
	return nil
}

// sinceBoot is the time since the kernel's start, sleep included.
func sinceBoot() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// memory reads the machine's memory in bytes.
func memory() (total, available int64, err error) {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "MemTotal:":
			total = n << 10
		case "MemAvailable:":
			available = n << 10
		}
	}
	return total, available, nil
}

// endLeftovers ends the containers that a former life of the agent left
// running: their cgroups are killed and removed, and so is the runtime's
// state. Nothing of it can be taken over: the ends of their streams are gone.
func endLeftovers(stateDir, cgroupRoot, parent string, log *slog.Logger) error {
	if cgroupRoot == "" {
		cgroupRoot = "/sys/fs/cgroup"
	}
	dir := filepath.Join(cgroupRoot, parent)
	list, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("find what a former life of the agent left: %w", err)
	}
	for _, d := range list {
		if !d.IsDir() || len(d.Name()) != 64 {
			continue // not a container's
		}
		log.Warn("ending a container that a former life of the agent left", "container", d.Name())
		if err := endCgroup(filepath.Join(dir, d.Name())); err != nil {
			return fmt.Errorf("end container %s: %w", d.Name(), err)
		}
	}
	if err := os.RemoveAll(stateDir); err != nil {
		return fmt.Errorf("remove the runtime's state: %w", err)
	}
	return nil
}

// endCgroup kills what is in a cgroup and removes it with those below it.
func endCgroup(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	below, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, d := range below {
		if d.IsDir() {
			if err := endCgroup(filepath.Join(dir, d.Name())); err != nil {
				return err
			}
		}
	}
	// The kernel needs a moment to take killed processes out; there is no event
	// to wait for that does not itself need the cgroup to stay.
	for wait := time.Millisecond; ; wait *= 2 {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || wait > 2*time.Second {
			return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		time.Sleep(wait)
	}
}
