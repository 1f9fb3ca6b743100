//go:build !unix

package usernet

// descriptors is how many file descriptors this process may have: Windows has no
// limit that matters.
func descriptors() uint64 { return 2 * maxStreams }
