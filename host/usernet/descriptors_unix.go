//go:build unix

package usernet

import "syscall"

// descriptors is how many file descriptors this process may have.
func descriptors() uint64 {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 2 * maxStreams
	}
	return min(uint64(l.Cur), 2*maxStreams) // infinity is larger than an int64
}
