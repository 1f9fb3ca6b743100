package daemon

import (
	"errors"
	"net"
	"os"
	"runtime"

	"dhow/internal/errdefs"
)

// listenUnix makes a unix socket, mode 0600, in a directory that only the user
// can enter. A socket that a killed dhowd left is replaced: the caller holds the
// machine's lock, so nobody listens on it. Close removes the socket.
func listenUnix(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errdefs.Wrap(errdefs.Denied, err, "cannot replace the socket %s", path)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, errdefs.Wrap(errdefs.Denied, err, "cannot make the socket %s", path)
	}
	if runtime.GOOS != "windows" {
		if err := os.Chmod(path, 0o600); err != nil {
			_ = l.Close()
			return nil, errdefs.Wrap(errdefs.Denied, err, "cannot protect the socket %s", path)
		}
	}
	return l, nil
}
