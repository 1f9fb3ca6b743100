//go:build linux

package apply

import (
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// conn is a route netlink socket that sends several requests at once. The
// kernel handles them within the send and in order, so all answers are there
// when it returns: only the last request asks for an acknowledgement, and
// errors of the others come before it.
type conn struct {
	mu  sync.Mutex
	fd  int
	seq uint32
	buf []byte
}

// dial opens a socket in the calling thread's network namespace.
func dial() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	return &conn{fd: fd, buf: make([]byte, 16<<10)}, nil
}

func (c *conn) close() error { return unix.Close(c.fd) }

// request is a netlink message and what to call it in an error.
type request struct {
	*nl.NetlinkRequest
	what string
}

// do sends requests together and waits for them. It returns the answers that
// are no acknowledgements, and the first error; the kernel handles the later
// requests all the same.
func (c *conn) do(reqs ...request) ([]syscall.NetlinkMessage, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []byte
	first := c.seq + 1
	for i, r := range reqs {
		c.seq++
		r.Seq = c.seq
		r.Flags &^= unix.NLM_F_ACK
		if i == len(reqs)-1 {
			r.Flags |= unix.NLM_F_ACK
		}
		out = append(out, r.Serialize()...)
	}
	for {
		err := unix.Sendto(c.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("netlink send: %w", err)
		}
		break
	}
	var answers []syscall.NetlinkMessage
	var failed error
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("netlink receive: %w", err)
		}
		msgs, err := syscall.ParseNetlinkMessage(c.buf[:n])
		if err != nil {
			return nil, fmt.Errorf("netlink answer: %w", err)
		}
		for _, m := range msgs {
			if m.Header.Seq-first >= uint32(len(reqs)) {
				continue // of a former call that failed half-way
			}
			if m.Header.Type != unix.NLMSG_ERROR {
				m.Data = append([]byte(nil), m.Data...) // the buffer is used again
				answers = append(answers, m)
				continue
			}
			if len(m.Data) < 4 {
				return nil, errors.New("netlink answer: short error")
			}
			errno := unix.Errno(-int32(nl.NativeEndian().Uint32(m.Data)))
			if errno != 0 && failed == nil {
				failed = fmt.Errorf("%s: %w", reqs[m.Header.Seq-first].what, errno)
			}
			if m.Header.Seq == c.seq {
				return answers, failed
			}
		}
	}
}
