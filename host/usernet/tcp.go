package usernet

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"dhow/host/splice"
)

const (
	// maxDialing is how many of the guest's connections may be in the making at
	// once; more SYNs are dropped, and the guest sends them again. It is large
	// enough that a scan of addresses that don't answer does not stall the rest.
	maxDialing = 1024
	// dialTimeout bounds each: a guest's kernel gives up later than this.
	dialTimeout = 60 * time.Second
	// maxStreams bounds the guest's connections at once; more are refused. Each
	// is a socket of the host, and the whole machine dies with this process: a
	// container must not be able to use up its descriptors or its memory.
	maxStreams = 8192
	// roomy is how many of them may have buffers that grow (tcpBuffers); those
	// made beyond have crowdBuffer bytes per direction for good. So the stack
	// holds at most roomy*2*tcpBuffers.max + maxStreams*2*crowdBuffer = 1.5 GiB,
	// which only a guest gets to that wants to.
	roomy       = 256
	crowdBuffer = 64 << 10
	// lingerTime bounds how long a connection that both sides have ended is kept
	// for what the guest has not taken yet. It counts as a connection until then.
	lingerTime = 30 * time.Second
	// timeWait is how long the stack remembers an ended connection. Nothing on
	// the way to the guest holds packets back, so none comes late.
	timeWait = time.Second
)

// streamLimit is maxStreams, or half of what descriptors this process may have
// (its soft limit; Go's runtime has raised that to the hard one).
func streamLimit() int64 { return min(maxStreams, int64(descriptors()/2)) }

// forwardTCP makes a connection of the guest anew from the host. The stack
// calls it in a goroutine of its own. The guest's handshake ends only when the
// host has connected, so a refusal is a refusal for the guest too.
func (n *Network) forwardTCP(r *tcp.ForwarderRequest) {
	n.mu.Lock()
	if n.ctx.Err() != nil {
		n.mu.Unlock()
		r.Complete(true)
		return
	}
	n.wg.Add(1)
	n.mu.Unlock()
	defer n.wg.Done()

	defer n.streams.Add(-1)
	count := n.streams.Add(1)
	if count > n.config.maxStreams {
		n.full.Do(func() {
			n.config.Log.Warn("the machine has too many connections; more are refused", "limit", n.config.maxStreams)
		})
		r.Complete(true)
		return
	}
	id := r.ID()
	local := netip.AddrFrom4(id.LocalAddress.As4())
	if local == netip.MustParseAddr(gatewayAddress) && id.LocalPort == dnsPort {
		n.forwardDNS(r, count)
		return
	}
	to, ok := n.destination(local)
	if !ok {
		r.Complete(true)
		return
	}
	out, err := n.dial.DialContext(n.ctx, "tcp", net.JoinHostPort(to.String(), strconv.Itoa(int(id.LocalPort))))
	if err != nil {
		r.Complete(true)
		return
	}
	defer out.Close()
	n.accept(r, count, func(in net.Conn) {
		defer context.AfterFunc(n.ctx, func() { _ = out.Close() })()
		_ = splice.Join(in, out) // an end with an error is the stream's, not the network's
	})
}

// forwardDNS answers the questions of a connection to the gateway.
func (n *Network) forwardDNS(r *tcp.ForwarderRequest, count int64) {
	defer n.dns.streams.Add(-1)
	if n.dns.streams.Add(1) > maxDNSStreams {
		r.Complete(true)
		return
	}
	n.accept(r, count, func(in net.Conn) { n.dns.conversation(n.ctx, in) })
}

// accept ends the guest's handshake and gives the connection to carry, the
// count-th of those there are. It returns when the stack has forgotten the
// connection.
func (n *Network) accept(r *tcp.ForwarderRequest, count int64, carry func(net.Conn)) {
	var queue waiter.Queue
	ep, terr := r.CreateEndpoint(&queue)
	r.Complete(false)
	if terr != nil {
		return // the guest gave up meanwhile
	}
	if count > n.config.roomy {
		o := ep.SocketOptions() // setting them turns the tuning off
		o.SetReceiveBufferSize(crowdBuffer, true)
		o.SetSendBufferSize(crowdBuffer, true)
	}
	in := gonet.NewTCPConn(&queue, ep)
	stop := context.AfterFunc(n.ctx, func() { _ = in.Close() })
	carry(in)
	stop()
	_ = in.Close()
	// A guest that neither takes what is left nor gives up would have the stack
	// keep it, and ask for room, for ever.
	abort := ep.(interface {
		Abort()
		Wait()
	})
	defer context.AfterFunc(n.ctx, abort.Abort)()
	defer time.AfterFunc(n.config.linger, abort.Abort).Stop()
	abort.Wait()
}

// destination says where a connection to an address goes, and whether it may.
func (n *Network) destination(to netip.Addr) (netip.Addr, bool) {
	switch {
	case to == netip.MustParseAddr(HostAddress):
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), n.config.HostLoopback
	case subnet.Contains(to), // the gateway's other ports, and nobody
		to.IsLoopback(), to.IsUnspecified(), to.As4()[0] == 0, to.IsMulticast(), to.IsLinkLocalUnicast(),
		to == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return to, false
	}
	return to, true
}
