// Package vsock is the guest's end of the sockets between host and guest, in
// the standard library's terms: net.Listener and net.Conn, half-close by
// CloseWrite.
//
// Who calls it: guest/agent (and guest/boot, where init needs the host). The
// host's end is the machine driver's (host/vm). It knows nothing of what is
// said on a connection; the proof that the peer holds the boot's key is
// proto/control's preamble.
//
// Listen admits the host's address only: a container that opens an AF_VSOCK
// socket is refused before it can say a byte.
package vsock
