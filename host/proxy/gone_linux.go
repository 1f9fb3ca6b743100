package proxy

import (
	"net"

	"golang.org/x/sys/unix"
)

// awaitHangup returns true when the peer has closed both directions, false when
// the connection is closed here. It sleeps in the runtime's poller, which wakes
// it on each change of the socket.
func awaitHangup(c *net.UnixConn) bool {
	rc, err := c.SyscallConn()
	if err != nil {
		return false
	}
	return rc.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p, 0)
		return err == nil && n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	}) == nil
}
