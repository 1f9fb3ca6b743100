//go:build linux

package boot

import (
	"bytes"
	"errors"

	"golang.org/x/sys/unix"
)

const (
	socketPath  = runDir + "/init.sock"
	maxRequest  = 64
	socketQueue = 8
)

// listenControl makes the socket that doc.go describes.
func listenControl(path string) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	_ = unix.Unlink(path) // there is none, unless a test left one
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err == nil {
		if err = unix.Chmod(path, 0o600); err == nil {
			err = unix.Listen(fd, socketQueue)
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// serveControl answers requests one at a time until fd is closed. It uses raw
// calls: package net would double init's start.
func serveControl(log *kmsg, fd int, answer func(verb string) string) error {
	for {
		c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
			continue
		case err != nil:
			return err
		}
		_ = log.guard("control socket", func() error { serveOne(c, answer); return nil })
		unix.Close(c)
	}
}

func serveOne(c int, answer func(string) string) {
	tv := unix.Timeval{Sec: 2} // a silent client must not block the next
	_ = unix.SetsockoptTimeval(c, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	_ = unix.SetsockoptTimeval(c, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
	var buf [maxRequest]byte
	n := 0
	for n < len(buf) && bytes.IndexByte(buf[:n], '\n') < 0 {
		m, err := unix.Read(c, buf[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || m == 0 {
			break
		}
		n += m
	}
	verb, _, ok := bytes.Cut(buf[:n], []byte{'\n'})
	reply := "error: a request is one line of at most 63 bytes\n"
	if ok {
		reply = answer(string(verb))
	}
	for b := []byte(reply); len(b) > 0; {
		m, err := unix.Write(c, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return
		}
		b = b[m:]
	}
}
