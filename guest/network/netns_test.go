//go:build linux

package network_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"dhow/guest/network"
	"dhow/internal/testkit"
	"dhow/proto/control"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inOwnNamespace moves the test to a network namespace of its own. Its thread
// is never given back: it ends with the test.
func inOwnNamespace(t testing.TB) {
	t.Helper()
	testkit.Kernel(t)
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("unshare: %v", err)
	}
	lo(t)
}

func lo(t testing.TB) {
	t.Helper()
	l, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(l)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// box stands for a container: a process in a network namespace of its own.
type box struct {
	t  *testing.T
	id string
	c  *exec.Cmd
	in io.WriteCloser
}

func newBox(t *testing.T, id string) *box {
	t.Helper()
	c := exec.Command("cat") // ends with its input
	c.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	in, err := c.StdinPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	b := &box{t: t, id: id, c: c, in: in}
	t.Cleanup(b.end)
	return b
}

func (b *box) end() {
	if b.in != nil {
		_ = b.in.Close()
		_ = b.c.Wait()
		b.in = nil
	}
}

func (b *box) attach(mode string) network.Attach {
	return network.Attach{ContainerID: b.id, Pid: b.c.Process.Pid, Mode: mode}
}

// do runs fn on a thread in the box's namespace.
func (b *box) do(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		ns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", b.c.Process.Pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- err
			return
		}
		defer unix.Close(ns)
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}

// echo serves UDP on addr in the box: it answers with the sender's address.
func (b *box) echo(addr string) {
	b.t.Helper()
	var pc net.PacketConn
	if err := b.do(func() (err error) { pc, err = net.ListenPacket("udp4", addr); return err }); err != nil {
		b.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 64)
		for {
			_, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo([]byte(from.String()), from)
		}
	})
	b.t.Cleanup(func() { _ = pc.Close(); wg.Wait() })
}

// ask sends a datagram from the box and returns the answer: the address that
// the other side saw. Lost datagrams are sent again.
func (b *box) ask(addr string, tries int) (string, error) {
	var c net.Conn
	if err := b.do(func() (err error) { c, err = net.Dial("udp4", addr); return err }); err != nil {
		return "", err
	}
	defer c.Close()
	buf := make([]byte, 64)
	var n int
	var err error
	for range tries {
		if _, err = c.Write([]byte("?")); err != nil {
			return "", err
		}
		_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		if n, err = c.Read(buf); err == nil {
			return string(buf[:n]), nil
		}
	}
	return "", err
}

// links returns the names of the namespace's links.
func (b *box) links() []string {
	b.t.Helper()
	var names []string
	if err := b.do(func() error {
		l, err := netlink.LinkList()
		for _, l := range l {
			names = append(names, l.Attrs().Name)
		}
		return err
	}); err != nil {
		b.t.Fatal(err)
	}
	return names
}

// uplink gives the test's namespace a network to the outside: a box at
// 192.168.127.1 that knows 192.168.127.2, the machine, and nothing behind it.
func uplink(t *testing.T) (*box, *control.Network) {
	t.Helper()
	out := newBox(t, "outside")
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "uplink"
	v := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsPid(out.c.Process.Pid)}
	set := func(name, addr string) error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(addr)
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(l, a), netlink.LinkSetUp(l))
	}
	if err := netlink.LinkAdd(v); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(set("uplink", "192.168.127.2/24"), out.do(func() error { return set("eth0", "192.168.127.1/24") })); err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteAdd(&netlink.Route{Gw: net.IPv4(192, 168, 127, 1)}); err != nil {
		t.Fatal(err)
	}
	return out, &control.Network{Address: "192.168.127.2/24", Gateway: "192.168.127.1", DNS: "192.168.127.1", MTU: 1400}
}

func open(t *testing.T, o network.Options) *network.Manager {
	t.Helper()
	m, err := network.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func attach(t *testing.T, m *network.Manager, a network.Attach) network.Endpoint {
	t.Helper()
	e, err := m.Attach(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// state is the links, addresses and routes of the test's namespace, as text.
func state(t *testing.T) string {
	t.Helper()
	var s []string
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		s = append(s, fmt.Sprintf("%s %s master %d", l.Attrs().Name, l.Type(), l.Attrs().MasterIndex))
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			s = append(s, "  "+a.String())
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		s = append(s, fmt.Sprintf("%v via %v dev %d", r.Dst, r.Gw, r.LinkIndex))
	}
	return strings.Join(s, "\n")
}

func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// settle waits until the links of detached containers are gone.
func settle(t *testing.T, m *network.Manager) {
	t.Helper()
	end := time.Now().Add(20 * time.Second)
	for m.Leaving() > 0 {
		if time.Now().After(end) {
			t.Fatal("links of detached containers stay")
		}
		time.Sleep(5 * time.Millisecond)
	}
}
