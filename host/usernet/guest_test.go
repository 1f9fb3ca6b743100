package usernet

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"dhow/internal/testkit"
)

// played is a guest: a second TCP/IP stack on the other end of the socket, as
// QEMU's device carries it.
type played struct {
	stack *stack.Stack
	conn  net.Conn
}

// plug opens a network and plugs a guest into it.
func plug(t testing.TB, c Config) (*Network, *played) {
	t.Helper()
	c.Socket, c.Log = filepath.Join(testkit.ShortDir(t), "n"), testkit.Log(t)
	n, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- n.Serve(ctx) }()
	conn, err := net.Dial("unix", c.Socket)
	if err != nil {
		t.Fatal(err)
	}
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	mac, err := net.ParseMAC(GuestMAC)
	if err != nil {
		t.Fatal(err)
	}
	ch := channel.New(4096, MTU+header.EthernetMinimumSize, tcpip.LinkAddress(mac))
	if err := s.CreateNIC(1, ethernet.New(ch)); err != nil {
		t.Fatal(err)
	}
	if err := s.AddProtocolAddress(1, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: address(guestAddress), PrefixLen: prefixBits}}, stack.AddressProperties{}); err != nil {
		t.Fatal(err)
	}
	local, _ := tcpip.NewSubnet(address("192.168.127.0"), tcpip.MaskFromBytes(net.CIDRMask(24, 32)))
	s.SetRouteTable([]tcpip.Route{{Destination: local, NIC: 1}, {Destination: header.IPv4EmptySubnet, Gateway: address(gatewayAddress), NIC: 1}})
	var wg sync.WaitGroup
	wg.Add(2)
	go func() {
		defer wg.Done()
		for {
			p := ch.ReadContext(ctx)
			if p == nil {
				return
			}
			v := p.ToView()
			p.DecRef()
			if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(v.Size())), v.AsSlice()...)); err != nil {
				return
			}
		}
	}()
	go func() {
		defer wg.Done()
		in := bufio.NewReader(conn)
		for {
			var size [4]byte
			if _, err := io.ReadFull(in, size[:]); err != nil {
				return
			}
			b := make([]byte, binary.BigEndian.Uint32(size[:]))
			if _, err := io.ReadFull(in, b); err != nil {
				return
			}
			p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
			ch.InjectInbound(0, p) // the Ethernet endpoint reads the protocol
			p.DecRef()
		}
	}()
	t.Cleanup(func() {
		s.Close()
		cancel()
		_ = conn.Close()
		wg.Wait()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if err := n.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		s.Wait()
	})
	return n, &played{s, conn}
}

func (p *played) dial(ctx context.Context, ip string, port int) (*gonet.TCPConn, error) {
	return gonet.DialContextTCP(ctx, p.stack, tcpip.FullAddress{NIC: 1, Addr: address(ip), Port: uint16(port)}, ipv4.ProtocolNumber)
}

// resolver asks the gateway, over the given network.
func (p *played) resolver(network string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		if network == "tcp" {
			return p.dial(ctx, gatewayAddress, 53)
		}
		return gonet.DialUDP(p.stack, nil, &tcpip.FullAddress{NIC: 1, Addr: address(gatewayAddress), Port: 53}, ipv4.ProtocolNumber)
	}}
}
