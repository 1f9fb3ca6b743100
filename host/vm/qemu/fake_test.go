//go:build unix

package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dhow/host/vm"
	"dhow/internal/errdefs"
	"dhow/internal/steps"
)

// The test's own binary plays QEMU when it is called by a name that starts with
// this; the rest of the name says how it behaves.
const fakePrefix = "fake-qemu-"

func TestMain(m *testing.M) {
	if mode, ok := strings.CutPrefix(filepath.Base(os.Args[0]), fakePrefix); ok {
		os.Exit(fakeQEMU(mode))
	}
	os.Exit(m.Run())
}

func fakeQEMU(mode string) int {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		version := "7.2.22"
		if mode == "old" {
			version = "6.2.0"
		}
		fmt.Println("QEMU emulator version " + version)
		return 0
	}
	switch mode {
	case "refuses", "old":
		fmt.Fprintln(os.Stderr, "qemu: Invalid parameter 'stream'")
		return 1
	case "silent":
		time.Sleep(time.Minute)
		return 1
	}
	f := os.NewFile(fdInherited, "qmp")
	c, err := net.FileConn(f)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_ = f.Close()
	version := greeting
	if mode == "oldgreeting" {
		version = strings.NewReplacer(`"major": 7`, `"major": 5`).Replace(greeting)
	}
	fmt.Fprintln(c, version)
	fmt.Print("early console\n")
	full := 0
	for s := bufio.NewScanner(c); s.Scan(); {
		command := s.Text()
		reply := func(answer string) { fmt.Fprintln(c, withID(command, answer)) }
		switch {
		case strings.Contains(command, "query-status"):
			status := "prelaunch"
			if mode == "wrongstatus" {
				status = "internal-error"
			}
			reply(fmt.Sprintf(`{"return": {"status": %q}}`, status))
			if mode == "stalls" {
				time.Sleep(time.Minute)
			}
		case strings.Contains(command, "cont"):
			if mode == "contfails" {
				reply(`{"error": {"class": "GenericError", "desc": "no disk"}}`)
				continue
			}
			reply(`{"return": {}}`)
			fmt.Print("guest runs\n")
			switch mode {
			case "dies":
				fmt.Fprintln(os.Stderr, "qemu: something broke")
				return 3
			case "full":
				if full++; full == 1 {
					fmt.Fprintln(c, `{"event": "BLOCK_IO_ERROR", "data": {"node-name": "data", "operation": "write", "action": "stop", "nospace": true, "reason": "No space left on device"}}`)
					continue
				}
				fmt.Fprintln(c, `{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}`)
			case "shutdown":
				fmt.Fprintln(c, `{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}`)
			case "reset":
				fmt.Print("Kernel panic - not syncing: VFS: no root\r\n")
				fmt.Fprintln(c, `{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}`)
			}
		case strings.Contains(command, "quit"):
			reply(`{"return": {}}`)
			fmt.Fprintln(c, `{"event": "SHUTDOWN", "data": {"guest": false, "reason": "host-qmp-quit"}}`)
			return 0
		default:
			reply(`{"return": {}}`)
		}
	}
	_, _ = io.Copy(io.Discard, c)
	return 0
}

// fake returns a machine whose QEMU behaves as mode says.
func fake(t *testing.T, mode string) *Machine {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	files := t.TempDir()
	binary := filepath.Join(files, fakePrefix+mode)
	if err := os.Symlink(self, binary); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"kernel", "initrd"} {
		if err := os.WriteFile(filepath.Join(files, f), []byte(f), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := os.MkdirTemp("", "q")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // Start makes it private
		t.Fatal(err)
	}
	m := New(vm.Config{
		Name: "fake", Dir: dir, Kernel: filepath.Join(files, "kernel"), Initrd: filepath.Join(files, "initrd"), CPUs: 1, Memory: 64 << 20,
		Boot: []byte("secret"), Log: slog.New(slog.DiscardHandler),
	}, Options{Binary: binary, Accel: "tcg"})
	t.Cleanup(func() { _ = m.Kill() })
	return m
}

// nothingLeft checks what a machine that ended has left.
func nothingLeft(t *testing.T, m *Machine) {
	t.Helper()
	select {
	case <-m.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("the machine has not ended")
	}
	if m.process != nil {
		t.Error("a process is left")
	}
	files, _ := filepath.Glob(filepath.Join(m.cfg.Dir, "*"))
	for _, f := range files {
		if filepath.Base(f) != "console.log" {
			t.Errorf("left behind: %s", f)
		}
	}
}

func TestRunningMachineIsPrivate(t *testing.T) {
	m := fake(t, "ok")
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, perm := range map[string]os.FileMode{".": 0o700, "vsock.sock": 0o600, "console.log": 0o600} {
		info, err := os.Stat(filepath.Join(m.cfg.Dir, name))
		if err != nil || info.Mode().Perm() != perm {
			t.Errorf("%s: %v, %v, want %v", name, info.Mode(), err, perm)
		}
	}
	if _, err := os.Stat(m.plan.initrd); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the boot file is still there: %v", err)
	}
	pid := m.process.cmd.Process.Pid
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, m)
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("QEMU is not reaped: %v", err)
	}
	if m.Err() != nil {
		t.Errorf("Err: %v", m.Err())
	}
}

func TestStartLeavesNothingWhicheverStepFails(t *testing.T) {
	for n := range fake(t, "ok").steps() {
		m := fake(t, "ok")
		name := ""
		m.alter = func(list []steps.Step) []steps.Step {
			name = list[n].Name
			return append(list[:n:n], steps.Step{Name: name, Do: func(context.Context) error { return errors.New("boom") }})
		}
		err := m.Start(t.Context())
		if err == nil || !strings.Contains(err.Error(), name+": boom") {
			t.Errorf("step %q: %v", name, err)
		}
		if !errors.Is(m.Err(), err) {
			t.Errorf("step %q: Err %v", name, m.Err())
		}
		nothingLeft(t, m)
	}
}

func TestStartLeavesNothingWhicheverStepIsCanceled(t *testing.T) {
	for n := range fake(t, "ok").steps() {
		for _, kill := range []bool{false, true} {
			m := fake(t, "ok")
			ctx, cancel := context.WithCancel(t.Context())
			killed := make(chan error, 1)
			m.alter = func(list []steps.Step) []steps.Step {
				do := list[n].Do
				list[n].Do = func(ctx context.Context) error {
					if kill {
						go func() { killed <- m.Kill() }()
						<-ctx.Done()
					} else {
						cancel()
					}
					return do(ctx)
				}
				return list
			}
			err := m.Start(ctx)
			if n < len(m.released)-1 && !errdefs.Is(err, errdefs.Canceled) || err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("step %d, kill %v: %v", n, kill, err)
			}
			cancel()
			if kill {
				if err := <-killed; err != nil {
					t.Errorf("step %d: Kill: %v", n, err)
				}
			} else if err == nil { // canceled when nothing was left to do
				_ = m.Kill()
			}
			nothingLeft(t, m)
		}
	}
}

func TestFailedStartsSayWhy(t *testing.T) {
	for _, c := range []struct {
		mode  string
		class errdefs.Class
		says  []string
	}{
		{"refuses", errdefs.Internal, []string{"QEMU could not start the machine: qemu: Invalid parameter 'stream'", "exit status 1"}},
		{"old", errdefs.Unavailable, []string{"is version 6.2; dhow needs QEMU 7.2 or later"}},
		{"oldgreeting", errdefs.Unavailable, []string{"is version 5.2; dhow needs QEMU 7.2 or later"}},
		{"wrongstatus", errdefs.Internal, []string{"internal-error"}},
		{"contfails", errdefs.Internal, []string{"no disk"}},
	} {
		m := fake(t, c.mode)
		err := m.Start(t.Context())
		if !errdefs.Is(err, c.class) {
			t.Errorf("%s: class %s of %v", c.mode, errdefs.ClassOf(err), err)
			continue
		}
		for _, s := range c.says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%s: %v does not say %q", c.mode, err, s)
			}
		}
		nothingLeft(t, m)
	}
}

func TestStartDoesNotWaitForASilentQEMU(t *testing.T) {
	for _, mode := range []string{"silent", "stalls"} {
		m := fake(t, mode)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		err := m.Start(ctx)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || !errdefs.Is(err, errdefs.Unavailable) {
			t.Errorf("%s: %v", mode, err)
		}
		nothingLeft(t, m)
	}
}

func TestEnds(t *testing.T) {
	for _, c := range []struct {
		mode string
		says []string // nil: no error
	}{
		{"shutdown", nil},
		{"full", nil}, // goes on after the pause
		{"reset", []string{"the guest's kernel panicked: VFS: no root", "console: guest runs"}},
		{"dies", []string{"QEMU ended", "exit status 3", "hypervisor: qemu: something broke", "console: early console"}},
	} {
		m := fake(t, c.mode)
		if err := m.Start(t.Context()); err != nil && c.mode != "dies" { // it may be that fast
			t.Errorf("%s: %v", c.mode, err)
			continue
		}
		nothingLeft(t, m)
		if c.says == nil {
			if m.Err() != nil {
				t.Errorf("%s: Err %v", c.mode, m.Err())
			}
			continue
		}
		var exit *vm.ExitError
		if !errors.As(m.Err(), &exit) {
			t.Errorf("%s: Err %v", c.mode, m.Err())
			continue
		}
		for _, s := range c.says {
			if !strings.Contains(exit.Error(), s) {
				t.Errorf("%s: %v does not say %q", c.mode, exit, s)
			}
		}
	}
}

func TestStartRefusesWhatCannotWork(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*vm.Config)
		class  errdefs.Class
	}{
		"long path":      {func(c *vm.Config) { c.Dir = "/tmp/" + strings.Repeat("x", 100) }, errdefs.Invalid},
		"no CPU":         {func(c *vm.Config) { c.CPUs = 0 }, errdefs.Invalid},
		"missing kernel": {func(c *vm.Config) { c.Kernel += "x" }, errdefs.NotFound},
		"no initrd":      {func(c *vm.Config) { c.Initrd = "" }, errdefs.Invalid},
	} {
		m := fake(t, "ok")
		c.change(&m.cfg)
		if err := m.Start(t.Context()); !errdefs.Is(err, c.class) {
			t.Errorf("%s: %v", name, err)
		}
		nothingLeft(t, m)
	}
}
