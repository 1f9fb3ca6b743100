//go:build linux

package network

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"dhow/guest/network/apply"
	"dhow/guest/network/ipam"
	"dhow/guest/network/plan"
	"dhow/internal/errdefs"
	"dhow/proto/control"

	"golang.org/x/sys/unix"
)

const (
	bridgeName = "docker0"
	inside     = "eth0"
	aliasMark  = "dhow:" // begins the alias of a container's link; its ID and address follow
	defaultMTU = 1500
)

// Options say what a manager needs. Uplink is the machine's own network, nil
// for none: containers then reach each other only. Keep, where it is not nil,
// says for which containers the links of a former agent stay; the others are
// removed.
type Options struct {
	Uplink *control.Network
	Keep   func(containerID string) bool
	Log    *slog.Logger
}

// Manager joins containers with networks. It is safe for concurrent use.
type Manager struct {
	log    *slog.Logger
	x      *apply.Executor
	bridge plan.Bridge
	subnet netip.Prefix
	dns    []string
	opened time.Time

	mu        sync.Mutex
	pool      *ipam.Pool
	endpoints map[string]*endpoint // by container ID
	closed    bool
	dead      []endpoint // detached; the sweeper removes their links
	leaving   int        // links that are detached and not removed yet
	wake      chan struct{}
	swept     chan struct{} // closed when the sweeper has ended

	making sync.Mutex // held while the bridge is made
	made   bool
}

// endpoint is a container's place on the bridge.
type endpoint struct {
	link string // the bridge's port
	addr netip.Addr
}

// Open returns the manager of the calling thread's network namespace, after it
// has looked for what a former one left there. It makes nothing yet.
func Open(_ context.Context, o Options) (_ *Manager, err error) {
	m := &Manager{log: o.Log, opened: time.Now(), endpoints: map[string]*endpoint{},
		wake: make(chan struct{}, 1), swept: make(chan struct{})}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	mtu := defaultMTU
	var taken []netip.Prefix
	if u := o.Uplink; u != nil {
		p, err := netip.ParsePrefix(u.Address)
		if err != nil {
			return nil, fmt.Errorf("the machine's address: %w", err)
		}
		taken = append(taken, p.Masked())
		if u.DNS != "" {
			m.dns = []string{u.DNS}
		}
		if u.MTU > 0 {
			mtu = u.MTU
		}
	}
	if m.subnet, err = plan.Subnet(taken...); err != nil {
		return nil, err
	}
	gw := plan.Gateway(m.subnet)
	m.bridge = plan.Bridge{Name: bridgeName, Addr: netip.PrefixFrom(gw, m.subnet.Bits()), MAC: plan.MAC(gw), MTU: mtu}
	if m.pool, err = ipam.New(m.subnet, gw); err != nil {
		return nil, err
	}
	if m.x, err = apply.Open(); err != nil {
		return nil, err
	}
	if err := m.reconcile(o.Keep); err != nil {
		return nil, errors.Join(err, m.x.Close())
	}
	go m.sweep()
	return m, nil
}

// reconcile takes over the links that a former manager made, or removes them.
func (m *Manager) reconcile(keep func(string) bool) error {
	ports, err := m.x.Ports(bridgeName)
	if err != nil {
		return err
	}
	for _, p := range ports {
		id, addr, ok := parseAlias(p.Alias)
		if ok && keep != nil && keep(id) && m.endpoints[id] == nil && m.pool.Take(addr) == nil {
			m.endpoints[id] = &endpoint{p.Name, addr}
			continue
		}
		m.log.Info("removing a link that was left over", "link", p.Name, "container", id)
		if err := m.x.Remove(p.Name); err != nil {
			return err
		}
	}
	return nil
}

func alias(id string, a netip.Addr) string { return aliasMark + id + ":" + a.String() }

func parseAlias(s string) (id string, a netip.Addr, ok bool) {
	s, ok = strings.CutPrefix(s, aliasMark)
	if !ok {
		return "", a, false
	}
	id, text, ok := strings.Cut(s, ":")
	if !ok || id == "" {
		return "", a, false
	}
	a, err := netip.ParseAddr(text)
	return id, a, err == nil
}

// makeBridge makes the bridge and its firewall, once.
func (m *Manager) makeBridge() error {
	m.making.Lock()
	defer m.making.Unlock()
	if m.made {
		return nil
	}
	for _, step := range []func() error{
		m.x.NoLinkLocal,
		func() error { return m.x.Bridge(m.bridge) },
		func() error { return m.x.Firewall(plan.Firewall(m.bridge)) },
		m.x.Forward, // last: nothing is forwarded that the firewall does not see
	} {
		if err := step(); err != nil {
			return errdefs.Wrap(errdefs.Internal, err, "the default bridge network cannot be set up: %v", err)
		}
	}
	m.made = true
	return nil
}

// Attach is a container that is to join a network. Its Pid names the network
// namespace; MAC and IP ask for addresses ("" = any).
type Attach struct {
	ContainerID string
	Pid         int
	Mode        string // a network's name; "" and "default" are the bridge
	MAC, IP     string
}

// Endpoint is what a container got. On none and host it has no addresses.
type Endpoint struct {
	NetworkID, NetworkName, EndpointID string
	Gateway, IPAddress                 string
	IPPrefixLen                        int
	MacAddress                         string
	DNS                                []string
}

// Attach joins a container with a network: on the bridge it gets eth0 with an
// address and a default route; on it and on none its loopback is up. Nothing
// is left behind an error. A container that is attached already is a conflict.
func (m *Manager) Attach(ctx context.Context, a Attach) (Endpoint, error) {
	switch a.Mode {
	case "bridge", "", "default":
		return m.attachBridge(ctx, a)
	case "none":
		e := newEndpoint("none")
		return e, inNamespace(a.Pid, m.x.Loopback)
	case "host":
		return newEndpoint("host"), nil
	}
	return Endpoint{}, errdefs.New(errdefs.NotFound, "network %s not found", a.Mode)
}

func newEndpoint(network string) Endpoint {
	var id [32]byte
	_, _ = rand.Read(id[:]) // never fails
	return Endpoint{NetworkID: networkID(network), NetworkName: network, EndpointID: hex.EncodeToString(id[:])}
}

// networkID is the same at every start, so that containers' records hold.
func networkID(name string) string {
	sum := sha256.Sum256([]byte("dhow network " + name))
	return hex.EncodeToString(sum[:])
}

// inNamespace calls fn with a descriptor of a process's network namespace.
func inNamespace(pid int, fn func(ns int) error) error {
	ns, err := unix.Open(filepath.Join("/proc", strconv.Itoa(pid), "ns/net"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return errdefs.Wrap(errdefs.Internal, err, "the network namespace of process %d cannot be opened", pid)
	}
	defer unix.Close(ns)
	return fn(ns)
}

func (m *Manager) attachBridge(_ context.Context, a Attach) (Endpoint, error) {
	if a.IP != "" {
		return Endpoint{}, errdefs.New(errdefs.Invalid, "user specified IP address is supported on user defined networks only")
	}
	var mac net.HardwareAddr
	if a.MAC != "" {
		var err error
		if mac, err = net.ParseMAC(a.MAC); err != nil || len(mac) != 6 {
			return Endpoint{}, errdefs.New(errdefs.Invalid, "invalid MAC address %q", a.MAC)
		}
	}
	if err := m.makeBridge(); err != nil {
		return Endpoint{}, err
	}
	addr, err := m.reserve(a.ContainerID)
	if err != nil {
		return Endpoint{}, err
	}
	if mac == nil {
		mac = plan.MAC(addr)
	}
	e := newEndpoint("bridge")
	v := plan.Veth{
		Name: "veth" + e.EndpointID[:7], Alias: alias(a.ContainerID, addr), Bridge: bridgeName, MTU: m.bridge.MTU,
		Inside: inside, MAC: mac, Addr: netip.PrefixFrom(addr, m.subnet.Bits()), Gateway: m.bridge.Addr.Addr(),
	}
	err = inNamespace(a.Pid, func(ns int) error { return m.x.Veth(v, ns) })
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		delete(m.endpoints, a.ContainerID)
		m.pool.Release(addr)
		return Endpoint{}, errdefs.Wrap(errdefs.Internal, err, "the container cannot be joined with the network bridge: %v", err)
	}
	m.endpoints[a.ContainerID].link = v.Name
	e.Gateway, e.IPAddress, e.IPPrefixLen = v.Gateway.String(), addr.String(), m.subnet.Bits()
	e.MacAddress, e.DNS = mac.String(), m.dns
	return e, nil
}

// reserve takes an address for a container.
func (m *Manager) reserve(id string) (netip.Addr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return netip.Addr{}, errdefs.New(errdefs.Unavailable, "the engine is stopping")
	}
	if m.endpoints[id] != nil {
		return netip.Addr{}, errdefs.New(errdefs.Conflict, "container %s is already attached to network bridge", id)
	}
	a, err := m.pool.Next()
	if err != nil {
		return a, errdefs.Wrap(errdefs.Unavailable, err, "no available IPv4 addresses on this network's address pools: bridge (%s)", m.subnet)
	}
	m.endpoints[id] = &endpoint{addr: a}
	return a, nil
}

// Detach takes a container off its network. One that is on none is no error.
// The link goes in the background, as the kernel takes its time over it and
// mostly is at it already, with the container's namespace; the address is free
// only after it, so that no two links ever have the same.
func (m *Manager) Detach(_ context.Context, containerID string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.endpoints[containerID]
	if e == nil || e.link == "" || m.closed {
		return nil
	}
	delete(m.endpoints, containerID)
	m.dead = append(m.dead, *e)
	m.leaving++
	m.rouse()
	return nil
}

func (m *Manager) rouse() {
	select {
	case m.wake <- struct{}{}:
	default: // it is roused already
	}
}

// sweep removes the links of detached containers and frees their addresses,
// until Close.
func (m *Manager) sweep() {
	defer close(m.swept)
	for range m.wake {
		m.mu.Lock()
		dead, closed := m.dead, m.closed
		m.dead = nil
		m.mu.Unlock()
		for _, e := range dead {
			err := m.x.Remove(e.link)
			m.mu.Lock()
			m.leaving--
			if err == nil {
				m.pool.Release(e.addr)
			}
			m.mu.Unlock()
			if err != nil {
				m.log.Error("a container's link cannot be removed; its address stays taken", "link", e.link, "address", e.addr, "err", err)
			}
		}
		if closed {
			return
		}
	}
}

// Leaving returns how many containers are detached whose links are still there.
func (m *Manager) Leaving() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leaving
}

// Network describes a network. Subnet and Gateway are those of IPv4, "" where
// it has none.
type Network struct {
	ID, Name, Driver, Scope string
	Subnet, Gateway         string
	MTU                     int // bytes; 0 where it has none of its own
	Created                 time.Time
}

// Networks returns the networks that there are: bridge, host and none.
func (m *Manager) Networks() []Network {
	return []Network{
		{ID: networkID("bridge"), Name: "bridge", Driver: "bridge", Scope: "local", Subnet: m.subnet.String(), Gateway: m.bridge.Addr.Addr().String(), MTU: m.bridge.MTU, Created: m.opened},
		{ID: networkID("host"), Name: "host", Driver: "host", Scope: "local", Created: m.opened},
		{ID: networkID("none"), Name: "none", Driver: "null", Scope: "local", Created: m.opened},
	}
}

// Close waits for links on their way out and ends the manager. Containers that
// are attached stay so, for the next one to find.
func (m *Manager) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	m.rouse()
	m.mu.Unlock()
	<-m.swept
	return m.x.Close()
}
