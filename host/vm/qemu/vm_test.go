//go:build linux

package qemu_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dhow/host/vm"
	"dhow/host/vm/qemu"
	"dhow/host/vm/vmtest"
	"dhow/host/vm/vmtest/probe"
	"dhow/internal/testkit"
	"dhow/proto/control"
)

// modules are what the probe needs of the kernel's, and those that they need.
var modules = []string{
	"virtio", "virtio_ring", "virtio_pci", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_blk", "failover", "net_failover", "virtio_net",
	"vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport",
}

// initrds keeps the probe's initramfs of each architecture.
var initrds sync.Map

// buildInitrd packs the probe and the modules of the image, for arch.
func buildInitrd(image, arch string) ([]byte, error) {
	if b, ok := initrds.Load(arch); ok {
		return b.([]byte), nil
	}
	dir, err := os.MkdirTemp("", "dhow-probe")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "init")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "dhow/host/vm/vmtest/probe/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	var archive bytes.Buffer
	b, err := os.ReadFile(bin)
	if err != nil {
		return nil, err
	}
	entry(&archive, "dev", 0o40755, nil)
	node(&archive, "dev/console", 0o20600, 5, 1) // or PID 1 has no output
	entry(&archive, "init", 0o100755, b)
	entry(&archive, "modules", 0o40755, nil)
	err = filepath.WalkDir(filepath.Join(image, "modules"), func(path string, d fs.DirEntry, err error) error {
		name, isModule := strings.CutSuffix(filepath.Base(path), ".ko")
		if err != nil || d.IsDir() || !isModule || !slices.Contains(modules, name) {
			return err
		}
		b, err := os.ReadFile(path)
		entry(&archive, "modules/"+name+".ko", 0o100644, b)
		return err
	})
	entry(&archive, "TRAILER!!!", 0, nil)
	initrds.Store(arch, archive.Bytes())
	return archive.Bytes(), err
}

func entry(b *bytes.Buffer, name string, mode int, data []byte) { cpio(b, name, mode, data, 0, 0) }

func node(b *bytes.Buffer, name string, mode, major, minor int) {
	cpio(b, name, mode, nil, major, minor)
}

func cpio(b *bytes.Buffer, name string, mode int, data []byte, major, minor int) {
	fmt.Fprintf(b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		0, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
	b.Write(make([]byte, -b.Len()&3))
	b.Write(data)
	b.Write(make([]byte, -b.Len()&3))
}

// config is a machine that boots the probe with the kernel of an image.
func config(t *testing.T, image, arch, dir string) vm.Config {
	t.Helper()
	initrd, err := buildInitrd(image, arch)
	if err != nil {
		t.Fatal(err)
	}
	cfg := vm.Config{
		Name: "test", Dir: dir, CPUs: 2, Memory: 256 << 20,
		Kernel: filepath.Join(image, "kernel"), Initrd: filepath.Join(t.TempDir(), "initrd"),
		Cmdline: "quiet cryptomgr.notests", Boot: []byte(`{"hello":"guest"}`),
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if err := os.WriteFile(cfg.Initrd, initrd, 0o600); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestVMConforms(t *testing.T) {
	image := testkit.VM(t).Image
	vmtest.Run(t, func(t *testing.T, dir string) vm.Machine {
		return qemu.New(config(t, image, runtime.GOARCH, dir), qemu.Options{})
	})
}

func TestVMConformsARM64(t *testing.T) {
	image := testkit.VM(t).ImageARM64
	_, err := exec.LookPath("qemu-system-aarch64")
	testkit.Need(t, err, "run `make deps`")
	vmtest.Run(t, func(t *testing.T, dir string) vm.Machine {
		return qemu.New(config(t, image, "arm64", dir), qemu.Options{Arch: "arm64"})
	})
}

// TestVMDevices boots with all devices and reads on the console what the guest
// sees of them.
func TestVMDevices(t *testing.T) {
	image := testkit.VM(t).Image
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	cfg := config(t, image, runtime.GOARCH, dir)
	files := t.TempDir()
	cfg.Root, cfg.DataDisk = filepath.Join(files, "root,with comma"), filepath.Join(files, "data")
	for f, size := range map[string]int64{cfg.Root: 1 << 20, cfg.DataDisk: 8 << 30} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(f, size); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(cfg.Root, 0o400); err != nil {
		t.Fatal(err)
	}
	cfg.Memory = 4 << 30 // more than fits below the PCI hole
	cfg.MAC, cfg.NetSocket = "5a:94:ef:e4:0c:ee", filepath.Join(dir, "net.sock")
	network, err := net.Listen("unix", cfg.NetSocket)
	if err != nil {
		t.Fatal(err)
	}
	defer network.Close()

	m := qemu.New(cfg, qemu.Options{})
	defer m.Kill()
	up, err := m.Listen(probe.PortUp)
	if err != nil {
		t.Fatal(err)
	}
	defer context.AfterFunc(t.Context(), func() { _ = up.Close() })()
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, err := network.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	timeout := time.AfterFunc(90*time.Second, func() { _ = up.Close() })
	defer timeout.Stop()
	if _, err := up.Accept(); err != nil {
		t.Fatal(err)
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	console, err := os.ReadFile(filepath.Join(dir, "console.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`boot: {"hello":"guest"}`,
		"disk: serial=" + control.SerialRoot + " ro=1 sectors=2048 ",
		"disk: serial=" + control.SerialData + " ro=0 sectors=16777216 discard=2147483136 cache=\"write back\"",
		"cpus: 0-1",
		"memory: 39", // 39xx MiB: the kernel takes some
		"net: mac=5a:94:ef:e4:0c:ee mtu=65520",
	} {
		if !strings.Contains(string(console), want) {
			t.Errorf("the console does not say %q:\n%s", want, console)
		}
	}
	t.Logf("%s", console)
}

// TestVMDiesWithItsParent kills a process that has started a machine, as hard
// as can be, and wants its QEMU to be gone.
func TestVMDiesWithItsParent(t *testing.T) {
	image := testkit.VM(t).Image
	if dir := os.Getenv(parentDir); dir != "" {
		m := qemu.New(config(t, image, runtime.GOARCH, dir), qemu.Options{})
		if err := m.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		fmt.Println("started")
		<-m.Done()
		t.Fatalf("the machine has ended: %v", m.Err())
	}
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	parent := exec.Command(os.Args[0], "-test.run=^TestVMDiesWithItsParent$")
	parent.Env = append(os.Environ(), parentDir+"="+dir)
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "started\n" {
		_ = parent.Process.Kill()
		t.Fatalf("the parent says %q, %v; %v", line, err, parent.Wait())
	}
	children := childrenOf(t, parent.Process.Pid)
	if len(children) != 1 {
		t.Errorf("children before the kill: %v", children)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	for deadline := time.Now().Add(10 * time.Second); len(children) > 0; time.Sleep(5 * time.Millisecond) {
		children = slices.DeleteFunc(children, func(pid string) bool {
			state, err := os.ReadFile("/proc/" + pid + "/stat")
			return err != nil || bytes.Contains(state, []byte(") Z ")) // a zombie waits for PID 1's leisure
		})
		if time.Now().After(deadline) {
			_ = exec.Command("kill", append([]string{"-9"}, children...)...).Run()
			t.Fatalf("still there: %v", children)
		}
	}
	// What the dead left does not stop the next boot in the same directory.
	m := qemu.New(config(t, image, runtime.GOARCH, dir), qemu.Options{})
	if err := m.Start(t.Context()); err != nil {
		t.Errorf("the next Start: %v", err)
	}
	if err := m.Kill(); err != nil {
		t.Error(err)
	}
}

// parentDir is set for the parent of TestVMDiesWithItsParent.
const parentDir = "DHOW_TEST_PARENT_DIR"

// childrenOf returns the pids of a process's children.
func childrenOf(t *testing.T, pid int) []string {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var pids []string
	for _, f := range lists {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, strings.Fields(string(b))...)
	}
	return pids
}
