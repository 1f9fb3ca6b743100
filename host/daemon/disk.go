package daemon

import (
	"errors"
	"os"
	"path/filepath"

	"dhow/internal/durable"
	"dhow/internal/errdefs"
)

// ensureDisk makes the data disk as a sparse file of size bytes, or grows it to
// that. It never shrinks it and never touches its content: a disk that is
// larger stays so.
func ensureDisk(path string, size int64) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return createDisk(path, size)
	}
	if err != nil {
		return errdefs.Wrap(errdefs.Denied, err, "cannot look at the data disk %s", path)
	}
	if !st.Mode().IsRegular() {
		return errdefs.New(errdefs.Invalid, "the data disk %s is not a regular file", path)
	}
	if st.Size() >= size {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return errdefs.Wrap(errdefs.Denied, err, "cannot open the data disk %s", path)
	}
	err = f.Truncate(size)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return errdefs.Wrap(errdefs.Unavailable, err, "cannot grow the data disk %s to %d bytes: %v", path, size, err)
}

// createDisk makes the file under another name first: a disk that is there has
// its full size.
func createDisk(path string, size int64) (err error) {
	defer func() {
		err = errdefs.Wrap(errdefs.Unavailable, err, "cannot make the data disk %s: %v", path, err)
	}()
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	err = makeSparse(f)
	if err == nil {
		err = f.Truncate(size)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return durable.Rename(f.Name(), filepath.Clean(path))
}
