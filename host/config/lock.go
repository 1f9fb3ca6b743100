package config

import (
	"errors"
	"io"
	"os"

	"dhow/internal/errdefs"
)

// errLocked is what tryLock returns if another process holds the lock.
var errLocked = errors.New("locked by another process")

// Lock locks the file for this process until Close, and makes it if it is not
// there. It doesn't wait: the error is Conflict if another process, or another
// Lock in this one, has it. The system drops the lock when the process ends,
// however it ends, so a lock is never stale; the file stays.
func Lock(path string) (io.Closer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, errdefs.Wrap(errdefs.Denied, err, "cannot open the lock %s", path)
	}
	if err := tryLock(f); err != nil {
		_ = f.Close()
		if errors.Is(err, errLocked) {
			return nil, errdefs.Wrap(errdefs.Conflict, err, "%s is locked", path)
		}
		return nil, errdefs.Wrap(errdefs.Internal, err, "cannot lock %s", path)
	}
	return f, nil
}
