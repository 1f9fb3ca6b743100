//go:build linux

package storetest

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dhow/guest/store/snapshot"
	"dhow/internal/testkit"
)

// NeedOverlay is testkit.Kernel for a test that mounts overlayfs.
func NeedOverlay(t testing.TB) {
	t.Helper()
	testkit.Kernel(t)
	raw, err := os.ReadFile("/proc/filesystems")
	if err == nil && strings.Contains(string(raw), "\toverlay\n") {
		return
	}
	const remedy = "this test needs overlayfs: run `modprobe overlay`"
	if os.Getenv("CI_REQUIRE_KERNEL") == "1" {
		t.Fatal(remedy)
	}
	t.Skip(remedy)
}

// WithMounts mounts a snapshot in a mount namespace of its own, as the runtime
// does, and calls fn with the path of its root. Nothing stays mounted. fn's
// goroutine is the only one that sees the mounts; fn must return errors rather
// than end the test.
func WithMounts(t testing.TB, mounts []snapshot.Mount, fn func(root string) error) error {
	t.Helper()
	target := t.TempDir()
	done := make(chan error)
	go func() {
		// The thread is not unlocked: it ends with the goroutine, and its
		// namespace with it.
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return fmt.Errorf("make mounts private: %w", err)
			}
			for _, m := range mounts {
				if err := Mount(m, target); err != nil {
					return err
				}
			}
			err := fn(target)
			if uerr := unix.Unmount(target, 0); err == nil && uerr != nil {
				err = fmt.Errorf("unmount: %w", uerr)
			}
			return err
		}()
	}()
	return <-done
}

// Mount performs a mount on the root target. The thread's working directory
// changes if m.Dir says so.
func Mount(m snapshot.Mount, root string) error {
	if m.Dir != "" {
		if err := unix.Chdir(m.Dir); err != nil {
			return fmt.Errorf("chdir %s: %w", m.Dir, err)
		}
	}
	var flags uintptr
	var data []string
	ro := false
	for _, o := range m.Options {
		switch o {
		case "ro":
			ro = true
		case "rw":
		case "bind":
			flags |= unix.MS_BIND
		case "rbind":
			flags |= unix.MS_BIND | unix.MS_REC
		default:
			data = append(data, o)
		}
	}
	target := filepath.Join(root, m.Target)
	fstype := m.Type
	if fstype == "bind" {
		fstype = ""
	} else if ro {
		flags |= unix.MS_RDONLY
	}
	options := strings.Join(data, ",")
	if err := unix.Mount(m.Source, target, fstype, flags, options); err != nil {
		return fmt.Errorf("mount %+v (%d bytes of options): %w", m, len(options), err)
	}
	if ro && flags&unix.MS_BIND != 0 {
		if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("remount read-only: %w", err)
		}
	}
	return nil
}
