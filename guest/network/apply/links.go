//go:build linux

package apply

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"dhow/guest/network/plan"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Executor changes links, addresses, routes and the firewall of one network
// namespace. It is safe for concurrent use.
type Executor struct {
	self int // the namespace
	host *conn

	mu      sync.Mutex
	bridges map[string]int // index of each bridge that Bridge made
}

// Open returns an executor for the calling thread's network namespace.
func Open() (*Executor, error) {
	self, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("own network namespace: %w", err)
	}
	c, err := dial()
	if err != nil {
		_ = unix.Close(self)
		return nil, err
	}
	return &Executor{self: self, host: c, bridges: map[string]int{}}, nil
}

// Close closes what Open opened.
func (x *Executor) Close() error { return errors.Join(x.host.close(), unix.Close(x.self)) }

// Bridge makes b, or adapts the one that is there.
func (x *Executor) Bridge(b plan.Bridge) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(b.Name)
	if _, missing := err.(netlink.LinkNotFoundError); missing {
		snooping := false // without it the bridge has no timers of its own
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr = b.Name, b.MTU, b.MAC
		if err = h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
			return fmt.Errorf("make bridge %s: %w", b.Name, err)
		}
		link, err = h.LinkByName(b.Name)
	}
	if err != nil {
		return fmt.Errorf("bridge %s: %w", b.Name, err)
	}
	if link.Type() != "bridge" {
		return fmt.Errorf("link %s is there and is no bridge but a %s", b.Name, link.Type())
	}
	have, err := h.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", b.Name, err)
	}
	for _, a := range have {
		if a.IPNet.String() != b.Addr.String() {
			if err := h.AddrDel(link, &a); err != nil {
				return fmt.Errorf("remove %v from %s: %w", a.IPNet, b.Name, err)
			}
		}
	}
	if err := h.AddrReplace(link, &netlink.Addr{IPNet: ipNet(b.Addr)}); err != nil {
		return fmt.Errorf("give %s to %s: %w", b.Addr, b.Name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", b.Name, err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.bridges[b.Name] = link.Attrs().Index
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}

// Port is a link on a bridge.
type Port struct{ Name, Alias string }

// Ports returns a bridge's links; none if there is no such bridge.
func (x *Executor) Ports(bridge string) ([]Port, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	br, err := h.LinkByName(bridge)
	if _, missing := err.(netlink.LinkNotFoundError); missing {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", bridge, err)
	}
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var ports []Port
	for _, l := range links {
		if a := l.Attrs(); a.MasterIndex == br.Attrs().Index {
			ports = append(ports, Port{a.Name, a.Alias})
		}
	}
	return ports, nil
}

// Remove removes a link, and the other end of a pair with it. One that is not
// there is no error.
func (x *Executor) Remove(link string) error {
	_, err := x.host.do(delLink(link))
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// Veth makes v: the bridge's port here, the other end in the network namespace
// of the descriptor ns, with its address and routes, both up. Nothing is left
// after an error, which wraps unix.EEXIST if v's name is taken.
func (x *Executor) Veth(v plan.Veth, ns int) error {
	x.mu.Lock()
	bridge, ok := x.bridges[v.Bridge]
	x.mu.Unlock()
	if !ok {
		return fmt.Errorf("bridge %s was not made", v.Bridge)
	}
	if _, err := x.host.do(newVeth(v, bridge, ns)); err != nil {
		return err
	}
	if _, err := x.host.do(setAlias(v)); err != nil {
		return errors.Join(err, x.Remove(v.Name))
	}
	err := x.inside(ns, func(c *conn) error {
		answers, err := c.do(up(1, "lo"), getLink(v.Inside))
		if err != nil {
			return err
		}
		index := 0
		for _, m := range answers {
			if m.Header.Type == unix.RTM_NEWLINK && len(m.Data) >= unix.SizeofIfInfomsg {
				index = int(nl.DeserializeIfInfomsg(m.Data).Index)
			}
		}
		if index == 0 {
			return fmt.Errorf("no link %s in the container's namespace", v.Inside)
		}
		rest := []request{newAddr(index, v)}
		if v.Gateway.IsValid() {
			rest = append(rest, defaultRoute(index, v))
		}
		_, err = c.do(append([]request{upPlain(index, v.Inside)}, rest...)...)
		if errors.Is(err, unix.EAFNOSUPPORT) { // the link has no IPv6 that could be kept down: no kernel support, or a small MTU
			_, err = c.do(append([]request{up(index, v.Inside)}, rest...)...)
		}
		return err
	})
	if err != nil {
		return errors.Join(err, x.Remove(v.Name))
	}
	return nil
}

// Loopback brings lo up in the network namespace of the descriptor ns.
func (x *Executor) Loopback(ns int) error {
	return x.inside(ns, func(c *conn) error {
		_, err := c.do(up(1, "lo"))
		return err
	})
}

// inside calls fn with a netlink socket of the network namespace ns. The
// thread is there only for as long as it takes to open it.
func (x *Executor) inside(ns int, fn func(*conn) error) error {
	c, err := x.dialIn(ns)
	if err != nil {
		return err
	}
	return errors.Join(fn(c), c.close())
}

func (x *Executor) dialIn(ns int) (*conn, error) {
	runtime.LockOSThread()
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("enter the container's network namespace: %w", err)
	}
	c, err := dial()
	// The way back fails only for want of memory. Going on here is not possible:
	// this goroutine would change the container's network for the machine's.
	for try := 0; ; try++ {
		back := unix.Setns(x.self, unix.CLONE_NEWNET)
		if back == nil {
			break
		}
		if try == 100 {
			panic(fmt.Sprintf("leave the container's network namespace: %v", back))
		}
		time.Sleep(10 * time.Millisecond)
	}
	runtime.UnlockOSThread()
	return c, err
}

// The messages.

func newVeth(v plan.Veth, bridge, ns int) request {
	r := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Flags, m.Change = unix.IFF_UP, unix.IFF_UP
	r.AddData(m)
	r.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.Name)))
	r.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(v.MTU))))
	r.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge))))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.Inside))
	peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(v.MTU)))
	peer.AddRtAttr(unix.IFLA_ADDRESS, v.MAC)
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns)))
	r.AddData(info)
	return request{r, "make the pair of links " + v.Name}
}

func setAlias(v plan.Veth) request {
	r := nl.NewNetlinkRequest(unix.RTM_SETLINK, 0)
	r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	r.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.Name)))
	r.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(v.Alias)))
	return request{r, "name the owner of " + v.Name}
}

func delLink(name string) request {
	r := nl.NewNetlinkRequest(unix.RTM_DELLINK, 0)
	r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	r.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	return request{r, "remove " + name}
}

func getLink(name string) request {
	r := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	r.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	return request{r, "look up " + name}
}

func up(index int, name string) request {
	r := nl.NewNetlinkRequest(unix.RTM_SETLINK, 0)
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index = int32(index)
	m.Flags, m.Change = unix.IFF_UP, unix.IFF_UP
	r.AddData(m)
	return request{r, "bring " + name + " up"}
}

// addrGenNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const addrGenNone = 1

// upPlain is up without an IPv6 link-local address: the network has no IPv6,
// and one would cause traffic of its own (duplicate detection, multicast
// reports, router solicitations) for each container.
func upPlain(index int, name string) request {
	r := up(index, name)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{addrGenNone})
	r.AddData(spec)
	return r
}

func newAddr(index int, v plan.Veth) request {
	r := nl.NewNetlinkRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	m := nl.NewIfAddrmsg(unix.AF_INET)
	m.Index, m.Prefixlen = uint32(index), uint8(v.Addr.Bits())
	r.AddData(m)
	a := v.Addr.Addr().AsSlice()
	r.AddData(nl.NewRtAttr(unix.IFA_LOCAL, a))
	r.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, a))
	r.AddData(nl.NewRtAttr(unix.IFA_BROADCAST, broadcast(v.Addr)))
	return request{r, "give " + v.Addr.String() + " to " + v.Inside}
}

func broadcast(p netip.Prefix) []byte {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return b[:]
}

func defaultRoute(index int, v plan.Veth) request {
	r := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	m := nl.NewRtMsg()
	m.Family = unix.AF_INET
	r.AddData(m)
	r.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, v.Gateway.AsSlice()))
	r.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	return request{r, "route by " + v.Gateway.String()}
}
