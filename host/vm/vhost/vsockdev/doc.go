// Package vsockdev is a virtio-vsock device in this process: QEMU hands it the
// queues by vhost-user (package vhost), and the rest of dhow sees net.Conn and
// net.Listener. It needs neither root nor /dev/vhost-vsock.
//
// Where things are:
//
//   - device.go: the Device; Serve, Dial, Listen, Close; the queues' life.
//   - recv.go: packets from the guest.
//   - send.go: packets to the guest; who waits for room there.
//   - conn.go, listener.go: what callers hold. window.go: received bytes.
//   - packet.go: the header on the wire (virtio 1.1 section 5.10).
//
// # How bytes flow
//
// Guest to host: the tx queue's goroutine copies a packet straight into the
// buffer of a Read that waits, or else into the connection's window. It never
// waits for a reader: the window is as large as the credit that the guest was
// given, and a guest that sends more is cut off.
//
// Host to guest: Write copies straight from the caller's buffer into the
// guest's, on the caller's goroutine. What does not fit (no credit, or no
// buffer in the ring) stays in the caller's buffer while Write waits, and is
// moved by whoever makes room: the goroutine of a queue, or another writer. So
// when Write returns, the bytes are in the guest's hands, Close has nothing to
// flush, and nothing is buffered per connection in this direction.
//
// Idle, two goroutines sleep in read(2) of an event descriptor, and that is
// all.
//
// # Differences from TCP
//
//   - A connection on which the guest sends a reset returns what had arrived,
//     then ECONNRESET, as TCP does; but Linux sends no reset when a process
//     closes with unread data: that end looks orderly.
//   - There is no buffer for sending, so a Write of any size waits once the
//     guest's own buffer (256 KiB on Linux) is full.
//   - While the machine is paused, connections stand still; a guest that comes
//     back as another boot finds them reset.
package vsockdev
