package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"dhow/host/vm/vmtest/probe"
)

func main() {
	err := errors.Join(
		os.MkdirAll("/sys", 0o755), unix.Mount("sys", "/sys", "sysfs", 0, ""),
		os.MkdirAll("/dev", 0o755), unix.Mount("dev", "/dev", "devtmpfs", 0, ""),
		loadModules("/modules"))
	if err == nil {
		report()
		err = probe.Serve(context.Background(), guest{})
	}
	fmt.Println("init:", err)
	os.Exit(1) // the kernel panics
}

// loadModules loads all modules in dir, whatever their order: one that misses
// a symbol of another is tried again as long as any can be loaded.
func loadModules(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.ko"))
	for err == nil && len(files) > 0 {
		var later []string
		var failed error
		for _, f := range files {
			if lerr := loadModule(f); lerr != nil {
				later, failed = append(later, f), errors.Join(failed, lerr)
			}
		}
		if len(later) == len(files) {
			return failed
		}
		files = later
	}
	return err
}

func loadModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", file, err)
	}
	return nil
}

// report prints what tests look for in the console's log.
func report() {
	boot, _ := os.ReadFile("/boot.json")
	fmt.Printf("boot: %s\n", boot)
	disks, _ := filepath.Glob("/sys/block/vd*")
	for _, d := range disks {
		fmt.Printf("disk: serial=%s ro=%s sectors=%s discard=%s cache=%q\n", value(d, "serial"), value(d, "ro"), value(d, "size"),
			value(d, "queue/discard_max_bytes"), value(d, "queue/write_cache"))
	}
	nets, _ := filepath.Glob("/sys/class/net/e*")
	for _, n := range nets {
		fmt.Printf("net: mac=%s mtu=%s\n", value(n, "address"), value(n, "mtu"))
	}
	var info unix.Sysinfo_t
	_ = unix.Sysinfo(&info)
	fmt.Printf("cpus: %s\nmemory: %d MiB\n", value("/sys/devices/system/cpu", "online"), uint64(info.Totalram)*uint64(info.Unit)>>20)
	fmt.Printf("clocksource: %s\n", value("/sys/devices/system/clocksource/clocksource0", "current_clocksource"))
}

func value(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b))
}

// guest is the machine's vsock device and power switch.
type guest struct{}

func (guest) Dial(port uint32) (net.Conn, error) {
	c, err := vsock.Dial(vsock.Host, port, nil)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (guest) Listen(port uint32) (net.Listener, error) {
	l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, port, nil)
	if err != nil {
		return nil, err
	}
	return l, nil
}

func (guest) PowerOff() { _ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) }

func (guest) Crash() { os.Exit(1) } // "Kernel panic - not syncing: Attempted to kill init!"
