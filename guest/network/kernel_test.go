//go:build linux

package network_test

import (
	"context"
	"errors"
	"fmt"

	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"dhow/guest/network"
	"dhow/guest/network/plan"
	"dhow/internal/errdefs"
	"dhow/proto/control"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"dhow/internal/testkit"
)

func TestContainersReachEachOtherAndTheOutside(t *testing.T) {
	inOwnNamespace(t)
	out, up := uplink(t)
	m := open(t, network.Options{Uplink: up})
	if _, err := netlink.LinkByName("docker0"); err == nil {
		t.Error("the bridge is there before a container needs it")
	}
	a, b := newBox(t, "aaaa"), newBox(t, "bbbb")
	ea, eb := attach(t, m, a.attach("bridge")), attach(t, m, b.attach("bridge"))
	if ea.IPAddress != "172.17.0.2" || eb.IPAddress != "172.17.0.3" || ea.Gateway != "172.17.0.1" || ea.IPPrefixLen != 16 ||
		ea.MacAddress != "02:42:ac:11:00:02" || !slices.Equal(ea.DNS, []string{"192.168.127.1"}) ||
		ea.NetworkName != "bridge" || len(ea.EndpointID) != 64 || ea.NetworkID != eb.NetworkID || ea.EndpointID == eb.EndpointID {
		t.Errorf("%+v\n%+v", ea, eb)
	}
	b.echo("172.17.0.3:7")
	out.echo("192.168.127.1:7")
	if saw, err := a.ask("172.17.0.3:7", 5); err != nil || !strings.HasPrefix(saw, "172.17.0.2:") {
		t.Errorf("a to b: %q, %v", saw, err)
	}
	if saw, err := a.ask("192.168.127.1:7", 5); err != nil || !strings.HasPrefix(saw, "192.168.127.2:") {
		t.Errorf("a to the outside: %q, %v; it must see the machine's address", saw, err)
	}
	// The outside reaches no container by itself, even where it has a route.
	if err := out.do(func() error {
		_, dst, _ := net.ParseCIDR("172.17.0.0/16")
		return netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.IPv4(192, 168, 127, 2)})
	}); err != nil {
		t.Fatal(err)
	}
	if saw, err := out.ask("172.17.0.3:7", 2); err == nil {
		t.Errorf("the outside reached a container, as %q", saw)
	}
	var inside []string
	if err := a.do(func() error {
		for _, name := range []string{"lo", "eth0"} {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
			if err != nil {
				return err
			}
			for _, ad := range addrs {
				inside = append(inside, fmt.Sprintf("%s %s brd %v mtu %d %s", name, ad.IPNet, ad.Broadcast, l.Attrs().MTU, l.Attrs().HardwareAddr))
			}
		}
		routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
		for _, r := range routes {
			inside = append(inside, fmt.Sprintf("%v via %v", r.Dst, r.Gw))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(inside)
	want := []string{
		"0.0.0.0/0 via 172.17.0.1",
		"172.17.0.0/16 via <nil>",
		"eth0 172.17.0.2/16 brd 172.17.255.255 mtu 1400 02:42:ac:11:00:02", // and no IPv6
		"lo 127.0.0.1/8 brd <nil> mtu 65536 ",
		"lo ::1/128 brd <nil> mtu 65536 ",
	}
	if !slices.Equal(inside, want) {
		t.Errorf("inside:\n%s\nwant:\n%s", strings.Join(inside, "\n"), strings.Join(want, "\n"))
	}
}

func TestKernelHoldsTheFirewallAsPlanned(t *testing.T) {
	inOwnNamespace(t)
	nft, err := exec.LookPath("nft")
	testkit.Need(t, err, "run `make deps`")
	m := open(t, network.Options{})
	attach(t, m, newBox(t, "aaaa").attach("bridge"))
	gw := netip.MustParsePrefix("172.17.0.1/16")
	want := plan.Firewall(plan.Bridge{Name: "docker0", Addr: gw}).String()
	got, err := exec.Command(nft, "-s", "list", "table", "ip", "dhow").CombinedOutput()
	if err != nil || string(got) != want {
		t.Errorf("%v\ngot\n%s\nwant\n%s", err, got, want)
	}
}

func TestNoneAndHost(t *testing.T) {
	inOwnNamespace(t)
	m := open(t, network.Options{})
	b := newBox(t, "aaaa")
	e := attach(t, m, b.attach("none"))
	if e.NetworkName != "none" || e.IPAddress != "" || e.MacAddress != "" {
		t.Errorf("%+v", e)
	}
	b.echo("127.0.0.1:7")
	if _, err := b.ask("127.0.0.1:7", 3); err != nil {
		t.Errorf("loopback: %v", err)
	}
	if l := b.links(); slices.Contains(l, "eth0") {
		t.Errorf("links %v", l)
	}
	if e := attach(t, m, b.attach("host")); e.NetworkName != "host" || e.IPAddress != "" {
		t.Errorf("%+v", e)
	}
	if _, err := netlink.LinkByName("docker0"); err == nil {
		t.Error("none or host made the bridge")
	}
	for _, mode := range []string{"none", "host", "bridge", "x"} {
		if err := m.Detach(t.Context(), mode); err != nil {
			t.Errorf("detach: %v", err)
		}
	}
}

func TestRefusals(t *testing.T) {
	inOwnNamespace(t)
	m := open(t, network.Options{})
	b := newBox(t, "aaaa")
	attach(t, m, b.attach("bridge"))
	for _, c := range []struct {
		a        network.Attach
		class    errdefs.Class
		sentence string
	}{
		{b.attach("nosuch"), errdefs.NotFound, "network nosuch not found"},
		{b.attach("bridge"), errdefs.Conflict, "container aaaa is already attached to network bridge"},
		{network.Attach{ContainerID: "c", Pid: b.c.Process.Pid, IP: "172.17.0.9"}, errdefs.Invalid, "user specified IP address is supported on user defined networks only"},
		{network.Attach{ContainerID: "c", Pid: b.c.Process.Pid, MAC: "x"}, errdefs.Invalid, `invalid MAC address "x"`},
	} {
		_, err := m.Attach(t.Context(), c.a)
		if errdefs.ClassOf(err) != c.class || errdefs.Sentence(err) != c.sentence {
			t.Errorf("%+v: %v", c.a, err)
		}
	}
}

func TestFailedAttachLeavesNothing(t *testing.T) {
	inOwnNamespace(t)
	m := open(t, network.Options{})
	b := newBox(t, "aaaa")
	attach(t, m, b.attach("bridge"))
	before := state(t)
	// There is an eth0 already, so the second cannot come in.
	if _, err := m.Attach(t.Context(), network.Attach{ContainerID: "c2", Pid: b.c.Process.Pid, Mode: "bridge"}); !errors.Is(err, unix.EEXIST) {
		t.Errorf("second eth0: %v", err)
	}
	if _, err := m.Attach(t.Context(), network.Attach{ContainerID: "c3", Pid: 1 << 30, Mode: "bridge"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such process: %v", err)
	}
	if after := state(t); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	if e := attach(t, m, newBox(t, "c4").attach("bridge")); e.IPAddress != "172.17.0.3" {
		t.Errorf("addresses leaked: the next is %s", e.IPAddress)
	}
}

func TestHundredAttachesAndDetachesLeaveNothing(t *testing.T) {
	inOwnNamespace(t)
	_, up := uplink(t)
	m := open(t, network.Options{Uplink: up})
	b := newBox(t, "warm")
	attach(t, m, b.attach("bridge")) // makes the bridge
	b.end()
	if err := m.Detach(t.Context(), "warm"); err != nil {
		t.Fatal(err)
	}
	settle(t, m)
	before, files := state(t), openFiles(t)
	for i := range 100 {
		id := fmt.Sprintf("c%d", i)
		b := newBox(t, id)
		attach(t, m, b.attach("bridge"))
		if i%2 == 0 {
			b.end() // detached before or after its namespace is gone
		}
		if err := errors.Join(m.Detach(t.Context(), id), m.Detach(t.Context(), id)); err != nil {
			t.Fatal(err)
		}
		b.end()
	}
	settle(t, m)
	if after := state(t); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	if n := openFiles(t); n != files {
		t.Errorf("%d open files, %d before", n, files)
	}
	if e := attach(t, m, newBox(t, "last").attach("bridge")); e.IPAddress != "172.17.0.2" {
		t.Errorf("addresses leaked: the next is %s", e.IPAddress)
	}
}

func TestManyAtOnce(t *testing.T) {
	inOwnNamespace(t)
	m := open(t, network.Options{})
	var boxes []*box
	for i := range 20 {
		boxes = append(boxes, newBox(t, fmt.Sprintf("c%d", i)))
	}
	var mu sync.Mutex
	ips := map[string]bool{}
	self, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	var wg sync.WaitGroup
	for _, b := range boxes {
		wg.Go(func() {
			runtime.LockOSThread() // for good
			if err := unix.Setns(int(self.Fd()), unix.CLONE_NEWNET); err != nil {
				t.Error(err)
				return
			}
			e, err := m.Attach(context.Background(), b.attach("bridge"))
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if ips[e.IPAddress] {
				t.Errorf("%s twice", e.IPAddress)
			}
			ips[e.IPAddress] = true
		})
	}
	wg.Wait()
	boxes[0].echo("0.0.0.0:7")
	for _, b := range boxes[1:] {
		if _, err := b.ask("172.17.0.1:9", 1); err != nil && strings.Contains(err.Error(), "unreachable") {
			t.Errorf("%s: %v", b.id, err)
		}
	}
}

func TestNextManagerFindsWhatIsThere(t *testing.T) {
	inOwnNamespace(t)
	first, err := network.Open(t.Context(), network.Options{})
	if err != nil {
		t.Fatal(err)
	}
	stays, goes := newBox(t, "stays"), newBox(t, "goes")
	attach(t, first, stays.attach("bridge"))
	attach(t, first, goes.attach("bridge"))
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	m := open(t, network.Options{Keep: func(id string) bool { return id == "stays" }})
	if l := goes.links(); slices.Contains(l, "eth0") {
		t.Errorf("the link of a container that is gone stays: %v", l)
	}
	if l := stays.links(); !slices.Contains(l, "eth0") {
		t.Errorf("the link of a container that runs is gone: %v", l)
	}
	if e := attach(t, m, newBox(t, "new").attach("bridge")); e.IPAddress != "172.17.0.3" {
		t.Errorf("the new one has %s, while 172.17.0.2 is in use and .3 is not", e.IPAddress)
	}
	if err := m.Detach(t.Context(), "stays"); err != nil {
		t.Fatal(err)
	}
	settle(t, m)
	if l := stays.links(); slices.Contains(l, "eth0") {
		t.Errorf("detached, but %v", l)
	}
}

func TestUplinkWithTheBridgesSubnetMovesTheBridge(t *testing.T) {
	inOwnNamespace(t)
	m := open(t, network.Options{Uplink: &control.Network{Address: "172.17.9.2/16"}})
	if e := attach(t, m, newBox(t, "a").attach("bridge")); e.IPAddress != "172.18.0.2" || e.Gateway != "172.18.0.1" {
		t.Errorf("%+v", e)
	}
	if n := m.Networks(); len(n) != 3 || n[0].Subnet != "172.18.0.0/16" || n[0].Gateway != "172.18.0.1" || n[2].Driver != "null" {
		t.Errorf("%+v", n)
	}
}

func TestUplinkTooSmallForIPv6(t *testing.T) {
	inOwnNamespace(t)
	m := open(t, network.Options{Uplink: &control.Network{Address: "192.168.127.2/24", MTU: 1000}})
	a, b := newBox(t, "a"), newBox(t, "b")
	attach(t, m, a.attach("bridge"))
	attach(t, m, b.attach("bridge"))
	b.echo("172.17.0.3:7")
	if saw, err := a.ask("172.17.0.3:7", 5); err != nil || !strings.HasPrefix(saw, "172.17.0.2:") {
		t.Errorf("%q, %v", saw, err)
	}
}

func BenchmarkAttachDetach(b *testing.B) {
	inOwnNamespace(b)
	m, err := network.Open(context.Background(), network.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	for b.Loop() {
		b.StopTimer()
		c := exec.Command(filepath.Join("/bin", "cat"))
		c.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
		in, _ := c.StdinPipe()
		if err := c.Start(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if _, err := m.Attach(context.Background(), network.Attach{ContainerID: "x", Pid: c.Process.Pid, Mode: "bridge"}); err != nil {
			b.Fatal(err)
		}
		if err := m.Detach(context.Background(), "x"); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		_ = in.Close()
		_ = c.Wait()
		b.StartTimer()
	}
}
