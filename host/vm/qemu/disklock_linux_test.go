package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestAwaitDiskWaitsForAnotherQEMUsLocks(t *testing.T) {
	name := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := awaitDisk(t.Context(), name); err != nil {
		t.Fatalf("free disk: %v", err)
	}
	lock := unix.Flock_t{Type: unix.F_RDLCK, Start: 201, Len: 1} // as QEMU does
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := awaitDisk(ctx, name); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("locked disk: %v", err)
	}
	go func() {
		time.Sleep(30 * time.Millisecond)
		f.Close()
	}()
	if err := awaitDisk(t.Context(), name); err != nil {
		t.Errorf("disk that becomes free: %v", err)
	}
}
