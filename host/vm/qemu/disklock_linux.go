package qemu

import (
	"context"
	"os"
	"time"

	"dhow/internal/errdefs"

	"golang.org/x/sys/unix"
)

// diskFreeTimeout is how long the QEMU of a dhowd that was killed may take to
// let go of the disk: the kernel has killed it, and still takes its memory down.
const diskFreeTimeout = 10 * time.Second

// awaitDisk returns when no process holds QEMU's locks on the file. QEMU locks
// single bytes from 100 on for what it does with an image, and from 200 on for
// what it lets others do (its docs/interop and block/file-posix.c).
func awaitDisk(ctx context.Context, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	for deadline := time.Now().Add(diskFreeTimeout); ; {
		lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 100, Len: 200}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
			return err
		}
		if lock.Type == unix.F_UNLCK {
			return nil
		}
		if time.Now().After(deadline) {
			return errdefs.New(errdefs.Conflict, "the data disk %s is in use by another machine", name)
		}
		// There is a lock call that waits, but not one that a context can end.
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
