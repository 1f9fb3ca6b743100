//go:build !linux

package proxy

import "net"

// awaitHangup cannot tell here: poll(2) of macOS reports a half-close as a
// hang-up, too. The next write to the client tells.
func awaitHangup(*net.UnixConn) bool { return false }
