package vsockdev

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dhow/host/vm/vhost/vsockdev/internal/vmguest/ports"
	"dhow/internal/testkit"

	"golang.org/x/net/nettest"
)

// machine is a real guest behind the device.
type machine struct {
	d       *Device
	up      net.Listener // the guest dials it when it serves
	exited  chan error
	console string
	cmd     *exec.Cmd
}

// TestVM runs the device under QEMU with a Linux guest.
func TestVM(t *testing.T) {
	files := testkit.VM(t)
	testkit.NoLeaks(t)
	m := startMachine(t, files.Image)
	m.wait(t)
	for _, c := range []struct {
		name string
		run  func(*testing.T, *machine)
	}{
		{"conn", vmConn}, {"errors", vmErrors}, {"half-close", vmHalfClose}, {"late reader", vmLate},
		{"stuck reader", vmStuck}, {"many", vmMany}, {"speed", vmSpeed}, {"pause", vmPause},
		{"reboot", vmReboot}, {"power off", vmPowerOff},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, m) })
	}
}

func startMachine(t *testing.T, image string) *machine {
	t.Helper()
	dir := testkit.ShortDir(t)
	initrd := filepath.Join(dir, "initrd")
	writeInitrd(t, initrd, image)
	m := &machine{d: New(testkit.Log(t), 42), exited: make(chan error, 1), console: filepath.Join(dir, "console")}
	var err error
	if m.up, err = m.d.Listen(ports.Up); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- m.d.Serve(l) }()

	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-smp", "2", "-m", "256M",
		"-object", "memory-backend-memfd,id=mem,size=256M,share=on",
		"-chardev", "socket,id=c0,path=" + filepath.Join(dir, "s"), "-device", "vhost-user-vsock-pci,chardev=c0",
		"-chardev", "socket,id=qmp,server=on,wait=off,path=" + filepath.Join(dir, "q"), "-mon", "chardev=qmp,mode=control",
		"-serial", "file:" + m.console, "-kernel", filepath.Join(image, "kernel"), "-initrd", initrd,
	}
	binary, console := "qemu-system-x86_64", "console=ttyS0 quiet panic=-1 no_timer_check"
	if runtime.GOARCH == "arm64" {
		binary, console = "qemu-system-aarch64", "console=ttyAMA0 quiet panic=-1"
		args = append(args, "-machine", "virt,memory-backend=mem", "-cpu", "max")
	} else {
		args = append(args, "-machine", "pc,memory-backend=mem", "-cpu", "max")
	}
	if cpu, err := os.ReadFile("/proc/cpuinfo"); err == nil && (bytes.Contains(cpu, []byte(" vmx")) || bytes.Contains(cpu, []byte(" svm"))) {
		args = append(args, "-accel", "kvm")
	}
	args = append(args, "-accel", "tcg,thread=multi", "-append", console)
	m.cmd = exec.Command(binary, args...)
	m.cmd.Stderr = os.Stderr
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { m.exited <- m.cmd.Wait() }()
	t.Cleanup(func() {
		_ = m.cmd.Process.Kill()
		<-m.exited
		m.d.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if t.Failed() {
			b, _ := os.ReadFile(m.console)
			t.Logf("console: %s", b)
		}
	})
	return m
}

// wait returns when the guest serves.
func (m *machine) wait(t *testing.T) {
	t.Helper()
	up := make(chan net.Conn, 1)
	start := time.Now()
	go func() {
		if c, err := m.up.Accept(); err == nil {
			up <- c
		}
	}()
	select {
	case c := <-up:
		t.Cleanup(func() { c.Close() })
		t.Logf("the guest was up after %v", time.Since(start).Round(10*time.Millisecond))
	case err := <-m.exited:
		m.exited <- err
		t.Fatalf("QEMU ended: %v", err)
	case <-time.After(2 * time.Minute):
		t.Fatal("the guest did not come up within 2 minutes")
	}
}

// writeInitrd makes the guest: vmguest as /init, and the image's modules for
// vsock on PCI.
func writeInitrd(t *testing.T, dst, image string) {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "init")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./internal/vmguest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the guest: %v\n%s", err, out)
	}
	var b bytes.Buffer
	entry := func(name string, mode int, data []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", 0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name)
		b.Write(make([]byte, 1+-(b.Len()+1)&3))
		b.Write(data)
		b.Write(make([]byte, -b.Len()&3))
	}
	read := func(name string) []byte {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	entry("dev", 0o40755, nil)
	entry("modules", 0o40755, nil)
	entry("init", 0o100755, read(bin))
	for _, name := range []string{
		"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci",
		"vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport",
	} {
		file := filepath.Join(image, "modules", name+".ko")
		if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
			continue // built into this kernel
		}
		entry("modules/"+name+".ko", 0o100644, read(file))
	}
	entry("TRAILER!!!", 0, nil)
	f, err := os.Create(dst)
	if err != nil {
		t.Fatal(err)
	}
	z, _ := gzip.NewWriterLevel(f, gzip.BestSpeed)
	_, err = z.Write(b.Bytes())
	if err := errors.Join(err, z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) dial(port uint32) (*Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := m.d.Dial(ctx, port)
	if err != nil {
		return nil, err
	}
	return c.(*Conn), nil
}

func (m *machine) mustDial(t *testing.T, port uint32) *Conn {
	t.Helper()
	c, err := m.dial(port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// vmConn runs the standard suite on two host ends of a path that goes into the
// guest by a connection of the host, and out by one of the guest.
func vmConn(t *testing.T, m *machine) {
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		l, err := m.d.Listen(0)
		if err != nil {
			return nil, nil, nil, err
		}
		defer l.Close()
		a, err := m.dial(ports.Relay)
		if err != nil {
			return nil, nil, nil, err
		}
		if err := binary.Write(a, binary.BigEndian, l.(*Listener).addr.Port); err != nil {
			return nil, nil, nil, err
		}
		b, err := l.Accept()
		return a, b, func() { a.Close(); b.Close() }, err
	})
}

func vmErrors(t *testing.T, m *machine) {
	_, err := m.dial(ports.Unlisten)
	wantErr(t, err, syscall.ECONNREFUSED)
	c := m.mustDial(t, ports.Close)
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read from a closed connection: %v", err)
	}
	// The guest's port of the host where nobody listens.
	r := m.mustDial(t, ports.Relay)
	if err := binary.Write(r, binary.BigEndian, uint32(999)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("relay to a port of nobody: %v", err)
	}
}

func vmHalfClose(t *testing.T, m *machine) {
	c := m.mustDial(t, ports.Sink)
	data := make([]byte, 3<<20+17)
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(data[:1]); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write after CloseWrite: %v", err)
	}
	var n int64
	if err := binary.Read(c, binary.BigEndian, &n); err != nil || n != int64(len(data)) {
		t.Errorf("the guest read %d of %d bytes: %v", n, len(data), err)
	}
}

// vmLate closes with data that the guest has not read, and it still reads all:
// soon after, and after the host has given the connection up.
func vmLate(t *testing.T, m *machine) {
	for _, wait := range []time.Duration{300 * time.Millisecond, closeTimeout + time.Second} {
		l, err := m.d.Listen(0)
		if err != nil {
			t.Fatal(err)
		}
		c := m.mustDial(t, ports.Late)
		h := struct{ Wait, Port uint32 }{uint32(wait.Milliseconds()), l.(*Listener).addr.Port}
		if err := binary.Write(c, binary.BigEndian, h); err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 200<<10)
		if _, err := c.Write(data); err != nil {
			t.Fatal(err)
		}
		c.Close()
		back, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		var n int64
		if err := binary.Read(back, binary.BigEndian, &n); err != nil || n != int64(len(data)) {
			t.Errorf("after %v the guest read %d of %d bytes: %v", wait, n, len(data), err)
		}
		back.Close()
		l.Close()
	}
}

// vmStuck has a guest that does not read one connection: the others live.
func vmStuck(t *testing.T, m *machine) {
	s := m.mustDial(t, ports.Stuck)
	if err := s.SetWriteDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	n, err := s.Write(make([]byte, 4<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a reader that is stuck took %d bytes: %v", n, err)
	}
	t.Logf("a stuck reader takes %d KiB", n>>10)
	// And one of ours, which does not read what the guest sends.
	src := m.mustDial(t, ports.Source)
	if err := binary.Write(src, binary.BigEndian, int64(8<<20)); err != nil {
		t.Fatal(err)
	}
	c := m.mustDial(t, ports.Echo)
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if _, err := c.Write([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := io.Copy(io.Discard, src); err != nil || n != 8<<20 {
		t.Errorf("then read %d bytes: %v", n, err)
	}
}

// vmMany runs many echoes of random data at once.
func vmMany(t *testing.T, m *machine) {
	before := m.closing() // the reader that is stuck keeps its connection
	start := time.Now()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := m.echo(uint64(i), 256<<10+i*8191); err != nil {
				t.Errorf("echo %d: %v", i, err)
			}
		}()
	}
	wg.Wait()
	t.Logf("50 echoes of 256–650 KiB at once: %v", time.Since(start).Round(time.Millisecond))
	start = time.Now()
	for range 500 {
		c, err := m.dial(ports.Echo)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	t.Logf("500 times connect and close: %v", time.Since(start).Round(time.Millisecond))
	for end := time.Now().Add(closeTimeout / 2); ; time.Sleep(10 * time.Millisecond) {
		n := m.closing()
		if n <= before {
			break
		}
		if time.Now().After(end) {
			t.Errorf("%d closed connections were not let go by the guest", n-before)
			break
		}
	}
}

// closing returns how many connections wait for the guest to close its end.
func (m *machine) closing() int {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	n := 0
	for _, c := range m.d.conns {
		if c.state == closing {
			n++
		}
	}
	return n
}

func (m *machine) echo(seed uint64, n int) error {
	c, err := m.dial(ports.Echo)
	if err != nil {
		return err
	}
	defer c.Close()
	src := rand.NewChaCha8([32]byte{byte(seed)})
	data := make([]byte, n)
	_, _ = src.Read(data)
	errs := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		errs <- errors.Join(err, c.CloseWrite())
	}()
	h := sha256.New()
	k, err := io.Copy(h, c)
	if werr := <-errs; err != nil || werr != nil {
		return errors.Join(err, werr)
	}
	if want := sha256.Sum256(data); k != int64(n) || !bytes.Equal(h.Sum(nil), want[:]) {
		return fmt.Errorf("sent %d bytes, got %d others", n, k)
	}
	return nil
}

func vmSpeed(t *testing.T, m *machine) {
	var connects, trips []time.Duration
	for range 300 {
		start := time.Now()
		c, err := m.dial(ports.Echo)
		if err != nil {
			t.Fatal(err)
		}
		connects = append(connects, time.Since(start))
		c.Close()
	}
	c := m.mustDial(t, ports.Echo)
	buf := make([]byte, 64)
	for range 1000 {
		start := time.Now()
		if _, err := c.Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			t.Fatal(err)
		}
		trips = append(trips, time.Since(start))
	}
	t.Logf("connect: %s", percentiles(connects))
	t.Logf("64-byte round trip: %s", percentiles(trips))

	const n = 64 << 20
	s := m.mustDial(t, ports.Sink)
	start := time.Now()
	data := make([]byte, 1<<20)
	for range n / len(data) {
		if _, err := s.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	_ = s.CloseWrite()
	var got int64
	if err := binary.Read(s, binary.BigEndian, &got); err != nil || got != n {
		t.Fatalf("the guest read %d: %v", got, err)
	}
	t.Logf("host to guest: %.0f MiB/s", n/1e0/(1<<20)/time.Since(start).Seconds())
	r := m.mustDial(t, ports.Source)
	start = time.Now()
	if err := binary.Write(r, binary.BigEndian, int64(n)); err != nil {
		t.Fatal(err)
	}
	if got, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, data); err != nil || got != n {
		t.Fatalf("read %d from the guest: %v", got, err)
	}
	t.Logf("guest to host: %.0f MiB/s", n/1e0/(1<<20)/time.Since(start).Seconds())
	m.d.mu.Lock()
	for i, q := range m.d.queues {
		if q != nil {
			t.Logf("queue %d: %+v", i, q.Stats())
		}
	}
	m.d.mu.Unlock()
}

func percentiles(d []time.Duration) string {
	slices.Sort(d)
	at := func(p float64) time.Duration { return d[int(float64(len(d)-1)*p)].Round(time.Microsecond) }
	return fmt.Sprintf("min %v, p50 %v, p99 %v, max %v", at(0), at(0.5), at(0.99), at(1))
}

// qmp sends commands to QEMU's monitor.
func (m *machine) qmp(t *testing.T, commands ...string) {
	t.Helper()
	c, err := net.Dial("unix", filepath.Join(filepath.Dir(m.console), "q"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	dec := make([]byte, 64<<10)
	for _, cmd := range append([]string{"", "qmp_capabilities"}, commands...) {
		if cmd != "" {
			fmt.Fprintf(c, `{"execute":%q}`+"\n", cmd)
		}
		var got strings.Builder
		for !strings.Contains(got.String(), `"return"`) && !strings.Contains(got.String(), `"QMP"`) {
			n, err := c.Read(dec)
			if err != nil {
				t.Fatalf("monitor, %s: %v after %s", cmd, err, got.String())
			}
			got.Write(dec[:n])
		}
	}
}

// vmPause pauses the machine under a connection, which goes on afterwards.
func vmPause(t *testing.T, m *machine) {
	c := m.mustDial(t, ports.Echo)
	done := make(chan error, 1)
	go func() { done <- m.echo(99, 4<<20) }()
	time.Sleep(30 * time.Millisecond)
	m.qmp(t, "stop")
	if err := c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Write([]byte("in vain")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a paused machine took %d bytes: %v", n, err)
	}
	_ = c.SetWriteDeadline(time.Time{})
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write([]byte("while paused"))
		wrote <- err
	}()
	m.qmp(t, "cont")
	if err := <-wrote; err != nil {
		t.Errorf("write across the pause: %v", err)
	}
	b := make([]byte, len("while paused"))
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "while paused" {
		t.Errorf("after the pause: %q, %v", b, err)
	}
	if err := <-done; err != nil {
		t.Errorf("echo across the pause: %v", err)
	}
}

func vmReboot(t *testing.T, m *machine) {
	c := m.mustDial(t, ports.Echo)
	p := m.mustDial(t, ports.Power)
	if _, err := p.Write([]byte("r")); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Minute))
	_, err := c.Read(make([]byte, 1))
	wantErr(t, err, syscall.ECONNRESET)
	m.wait(t)
	if err := m.echo(1, 1<<20); err != nil {
		t.Errorf("after the reboot: %v", err)
	}
}

func vmPowerOff(t *testing.T, m *machine) {
	c := m.mustDial(t, ports.Echo)
	p := m.mustDial(t, ports.Power)
	if _, err := p.Write([]byte("o")); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	_, err := c.Read(make([]byte, 1))
	wantErr(t, err, syscall.ECONNRESET)
	select {
	case err := <-m.exited:
		m.exited <- err
		t.Logf("QEMU ended %v after the command: %v", time.Since(start).Round(time.Millisecond), err)
	case <-time.After(30 * time.Second):
		t.Error("QEMU does not end")
	}
	_, err = m.dial(ports.Echo)
	wantErr(t, err, syscall.ECONNREFUSED)
}
