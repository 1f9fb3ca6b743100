package usernet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// udpIdle is how long a flow may be silent before it is forgotten; RFC 4787
	// wants at least two minutes of a NAT.
	udpIdle = 2 * time.Minute
	// dnsFlowIdle is the same for questions to DNS servers, which are many and
	// short.
	dnsFlowIdle = 15 * time.Second
	// maxFlows bounds the flows at once; packets of more are dropped.
	maxFlows = 2048
	// maxDatagram is the largest UDP payload in bytes.
	maxDatagram = 65507
)

// forwardUDP makes a flow of the guest anew from the host. The stack calls it
// for a flow's first packet and waits, so it must not block.
func (n *Network) forwardUDP(r *udp.ForwarderRequest) {
	id := r.ID()
	to, ok := n.destination(netip.AddrFrom4(id.LocalAddress.As4()))
	if !ok || n.flows.Load() >= maxFlows {
		return
	}
	n.mu.Lock()
	if n.ctx.Err() != nil {
		n.mu.Unlock()
		return
	}
	n.wg.Add(1)
	n.mu.Unlock()
	n.flows.Add(1)
	done := func() {
		n.flows.Add(-1)
		n.wg.Done()
	}
	// A socket and a connect: nothing is sent.
	out, err := net.Dial("udp", net.JoinHostPort(to.String(), strconv.Itoa(int(id.LocalPort))))
	if err != nil {
		done()
		return
	}
	var queue waiter.Queue
	ep, terr := r.CreateEndpoint(&queue) // the first packet is in its queue
	if terr != nil {
		_ = out.Close()
		done()
		return
	}
	idle := udpIdle
	if id.LocalPort == 53 {
		idle = dnsFlowIdle
	}
	go func() {
		defer done()
		exchange(n.ctx, gonet.NewUDPConn(&queue, ep), out, idle)
	}()
}

// exchange copies datagrams both ways until neither side has sent any for
// idle, one of them fails, or ctx ends; it closes both.
func exchange(ctx context.Context, a, b net.Conn, idle time.Duration) {
	end := func() { _, _ = a.Close(), b.Close() }
	defer context.AfterFunc(ctx, end)()
	var last atomic.Int64 // time of the last datagram, ns
	last.Store(time.Now().UnixNano())
	var wg sync.WaitGroup
	for _, d := range []struct{ from, to net.Conn }{{a, b}, {b, a}} {
		wg.Go(func() {
			defer end()
			pump(d.to, d.from, &last, idle)
		})
	}
	wg.Wait()
}

// pump is one direction of exchange.
func pump(to, from net.Conn, last *atomic.Int64, idle time.Duration) {
	buf := make([]byte, maxDatagram)
	for {
		left := idle - time.Since(time.Unix(0, last.Load()))
		if left <= 0 || from.SetReadDeadline(time.Now().Add(left)) != nil {
			return
		}
		size, err := from.Read(buf)
		if isTimeout(err) {
			continue // the other direction may have been busy
		}
		if err != nil {
			return
		}
		last.Store(time.Now().UnixNano())
		if _, err := to.Write(buf[:size]); errors.Is(err, net.ErrClosed) {
			return
		} // else a datagram is lost, as datagrams are
	}
}

// isTimeout reports whether err is a deadline that has passed: gonet's error
// is one of its own.
func isTimeout(err error) bool {
	var n net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || (errors.As(err, &n) && n.Timeout())
}
