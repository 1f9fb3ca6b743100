//go:build linux

package runtime

import (
	"context"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"
)

// socket is our end of a conversation with dhow-enter. It blocks in the
// system call and stays out of the network poller: the answers come within a
// millisecond, which is less than what parking and waking a goroutine through
// the poller costs a small machine.
type socket struct {
	mu sync.Mutex
	fd int // -1 = closed
}

// socketPair makes a connected pair; theirs is a bare descriptor.
func socketPair(kind int) (ours *socket, theirs int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, -1, fmt.Errorf("socketpair: %w", err)
	}
	return &socket{fd: fds[0]}, fds[1], nil
}

func (s *socket) number() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fd
}

// Close closes the socket; a second time it does nothing.
func (s *socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return nil
	}
	err := unix.Close(s.fd)
	s.fd = -1
	return err
}

// interruptOn makes the conversation end when ctx does: reads give io.EOF,
// writes EPIPE.
func (s *socket) interruptOn(ctx context.Context) (stop func() bool) {
	if ctx.Done() == nil {
		return func() bool { return true }
	}
	return context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.fd >= 0 {
			_ = unix.Shutdown(s.fd, unix.SHUT_RDWR)
		}
	})
}

// send sends all of b, with descriptors attached to its first byte.
func (s *socket) send(b []byte, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for len(b) > 0 {
		n, err := unix.SendmsgN(s.number(), b, oob, nil, unix.MSG_NOSIGNAL)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b, oob = b[n:], nil
	}
	return nil
}

// sendSome sends what can be sent without waiting, perhaps nothing.
func (s *socket) sendSome(b []byte) (n int, err error) {
	for {
		n, err = unix.SendmsgN(s.number(), b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch err {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return 0, nil
		}
		return max(n, 0), err
	}
}

// receive reads into b and returns the descriptors that came along, at most
// one; io.EOF at the end.
func (s *socket) receive(b []byte) (n, fd int, err error) {
	oob := make([]byte, unix.CmsgSpace(4))
	var oobn int
	for {
		n, oobn, _, _, err = unix.Recvmsg(s.number(), b, oob, unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			break
		}
	}
	fd = -1
	if err != nil {
		return 0, fd, err
	}
	if msgs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(msgs) == 1 {
		if got, err := unix.ParseUnixRights(&msgs[0]); err == nil && len(got) == 1 {
			fd = got[0]
		}
	}
	if n == 0 {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return 0, -1, io.EOF
	}
	return n, fd, nil
}
