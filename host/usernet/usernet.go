package usernet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containers/gvisor-tap-vsock/pkg/tap"
	"github.com/containers/gvisor-tap-vsock/pkg/types"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"dhow/internal/errdefs"
	"dhow/proto/control"
)

// The network's addresses. It is the same for every machine: each has a stack
// of its own.
const (
	GuestMAC       = "5a:94:ef:e4:0c:ee"
	gatewayMAC     = "5a:94:ef:e4:0c:dd"
	guestAddress   = "192.168.127.2"
	gatewayAddress = "192.168.127.1"
	// HostAddress stands for the host's 127.0.0.1, where that is allowed.
	HostAddress = "192.168.127.254"
	prefixBits  = 24
	// MTU is the largest IP packet in bytes. Nothing between the guest's stack
	// and ours has a smaller one, and few large packets cost less than many.
	MTU = 65520
)

// subnet holds the three addresses.
var subnet = netip.MustParsePrefix("192.168.127.0/24")

const nic tcpip.NICID = 1

// Config of a Network.
type Config struct {
	Socket       string   // path of the unix socket to make; a stale one is replaced
	DNS          []string // addresses of servers; none: the host's resolver
	HostLoopback bool     // the guest reaches the host's 127.0.0.1 as HostAddress
	Log          *slog.Logger

	// Of tests; zero: as DNS says, and the constants.
	resolver          resolver
	maxStreams, roomy int64
	linger            time.Duration
}

// Network is a running network. Serve it, then Close it.
type Network struct {
	config   Config
	listener net.Listener
	stack    *stack.Stack
	device   *tap.Switch
	dns      *nameServer
	dial     net.Dialer

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	mu     sync.Mutex // guards the Add of wg against Close's Wait
	wg     sync.WaitGroup
	flows  atomic.Int64 // of UDP

	streams atomic.Int64 // TCP connections of the guest, those in the making too
	full    sync.Once    // says that they were too many
}

// Address returns what the guest is told about the network. Its Host is "" where
// the config does not allow HostLoopback.
func (n *Network) Address() *control.Network {
	a := &control.Network{MAC: GuestMAC, Address: fmt.Sprintf("%s/%d", guestAddress, prefixBits), Gateway: gatewayAddress, DNS: gatewayAddress, MTU: MTU}
	if n.config.HostLoopback {
		a.Host = HostAddress
	}
	return a
}

// Open makes the stack and the socket, mode 0600; the driver may connect from
// now on. On an error nothing is left.
func Open(c Config) (_ *Network, err error) {
	if c.maxStreams == 0 {
		c.maxStreams = streamLimit()
	}
	if c.roomy == 0 {
		c.roomy = roomy
	}
	if c.linger == 0 {
		c.linger = lingerTime
	}
	n := &Network{config: c}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.dial.Timeout = dialTimeout
	routeLog(c.Log)
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	link, err := tap.NewLinkEndpoint(false, MTU, gatewayMAC, gatewayAddress, []string{HostAddress})
	if err != nil {
		return nil, err
	}
	n.device = tap.NewSwitch(false)
	link.Connect(n.device)
	n.device.Connect(link)
	if err := n.makeStack(link); err != nil {
		return nil, err
	}
	if n.dns, err = n.openDNS(); err != nil {
		return nil, err
	}
	if err := os.Remove(c.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errdefs.Wrap(errdefs.Denied, err, "cannot replace the socket %s", c.Socket)
	}
	n.listener, err = net.Listen("unix", c.Socket)
	if err != nil {
		return nil, errdefs.Wrap(errdefs.Denied, err, "cannot make the socket %s", c.Socket)
	}
	return n, os.Chmod(c.Socket, 0o600)
}

// tcpBuffers bounds what a connection holds in memory, per direction; the
// stack starts low and grows it with the measured throughput.
var tcpBuffers = struct{ min, start, max int }{4 << 10, 256 << 10, 1 << 20}

func (n *Network) makeStack(link stack.LinkEndpoint) error {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	n.stack = s
	sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcpBuffers.min, Default: tcpBuffers.start, Max: tcpBuffers.max}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcpBuffers.min, Default: tcpBuffers.start, Max: tcpBuffers.max}
	wait := tcpip.TCPTimeWaitTimeoutOption(timeWait)
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &receive, &send, &wait} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return errors.New(err.String())
		}
	}
	if err := s.CreateNIC(nic, link); err != nil {
		return errors.New(err.String())
	}
	gateway := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: address(gatewayAddress).WithPrefix()}
	if err := s.AddProtocolAddress(nic, gateway, stack.AddressProperties{}); err != nil {
		return errors.New(err.String())
	}
	// The stack takes in packets to any address and answers in its name.
	s.SetSpoofing(nic, true)
	s.SetPromiscuousMode(nic, true)
	net4, err := tcpip.NewSubnet(tcpip.AddrFromSlice(subnet.Addr().AsSlice()), tcpip.MaskFromBytes(net.CIDRMask(prefixBits, 32)))
	if err != nil {
		return err
	}
	s.SetRouteTable([]tcpip.Route{{Destination: net4, NIC: nic}})
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(s, 0, maxDialing, n.forwardTCP).HandlePacket)
	s.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(s, n.forwardUDP).HandlePacket)
	return nil
}

func address(s string) tcpip.Address { return tcpip.AddrFromSlice(netip.MustParseAddr(s).AsSlice()) }

// Serve answers DNS and carries the frames of the devices that connect, until
// ctx ends or Close (nil), or the listener fails.
func (n *Network) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	defer context.AfterFunc(ctx, func() {
		_ = n.listener.Close()
		n.dns.close()
	})()
	wg.Add(1)
	go func() {
		defer wg.Done()
		n.dns.serve(ctx)
	}()
	for {
		c, err := n.listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer context.AfterFunc(ctx, func() { _ = c.Close() })()
			err := n.device.Accept(ctx, newFrames(c), types.QemuProtocol)
			n.config.Log.Debug("the machine's network device was unplugged", "error", err)
		}()
	}
}

// Close ends every connection and the stack, waits for their goroutines, and
// removes the socket. Serve returns.
func (n *Network) Close() error {
	n.mu.Lock()
	n.cancel()
	n.mu.Unlock()
	var err error
	if n.listener != nil {
		if cerr := n.listener.Close(); !errors.Is(cerr, net.ErrClosed) {
			err = cerr
		}
	}
	if n.dns != nil {
		n.dns.close()
	}
	if n.stack != nil {
		n.stack.Close()
		n.wg.Wait()
		n.stack.Wait()
	}
	return err
}
