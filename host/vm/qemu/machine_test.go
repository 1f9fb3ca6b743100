package qemu_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"dhow/host/vm"
	"dhow/host/vm/qemu"
	"dhow/host/vm/vmtest"
)

// needVM skips a test that boots a machine, unless it is asked for.
func needVM(t *testing.T) {
	t.Helper()
	skip := t.Skipf
	if os.Getenv("CI_REQUIRE_VM") == "1" {
		skip = t.Fatalf
	}
	if os.Getenv("DHOW_TEST_VM") != "1" {
		skip("this test boots machines: run `make test-vm`")
	}
	if _, err := os.Stat(filepath.Join(os.Getenv("DHOW_TEST_IMAGE"), "kernel")); err != nil {
		skip("DHOW_TEST_IMAGE must name the directory of an image: run `make vmimage`, then `make test-vm` (%v)", err)
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		skip("QEMU is not installed: run `apt-get install qemu-system-x86` (%v)", err)
	}
}

// modules are what the probe needs of the kernel's, and those that they need.
var modules = []string{
	"virtio", "virtio_ring", "virtio_pci", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_blk", "failover", "net_failover", "virtio_net",
	"vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport",
}

var buildOnce = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "dhow-probe")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "init")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "dhow/host/vm/vmtest/probe/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
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
	err = filepath.WalkDir(filepath.Join(os.Getenv("DHOW_TEST_IMAGE"), "modules"), func(path string, d fs.DirEntry, err error) error {
		name, isModule := strings.CutSuffix(filepath.Base(path), ".ko")
		if err != nil || d.IsDir() || !isModule || !slices.Contains(modules, name) {
			return err
		}
		b, err := os.ReadFile(path)
		entry(&archive, "modules/"+name+".ko", 0o100644, b)
		return err
	})
	entry(&archive, "TRAILER!!!", 0, nil)
	return archive.Bytes(), err
})

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

// config is a machine that boots the probe.
func config(t *testing.T, dir string) vm.Config {
	t.Helper()
	initrd, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	files := t.TempDir()
	cfg := vm.Config{
		Name: "test", Dir: dir, CPUs: 2, Memory: 256 << 20,
		Kernel: filepath.Join(os.Getenv("DHOW_TEST_IMAGE"), "kernel"), Initrd: filepath.Join(files, "initrd"),
		Cmdline: "quiet cryptomgr.notests", Boot: []byte(`{"hello":"guest"}`),
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if err := os.WriteFile(cfg.Initrd, initrd, 0o600); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestQEMUConforms(t *testing.T) {
	needVM(t)
	vmtest.Run(t, func(t *testing.T, dir string) vm.Machine { return qemu.New(config(t, dir), qemu.Options{}) })
}
