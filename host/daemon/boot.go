package daemon

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"dhow/host/client"
	"dhow/host/config"
	"dhow/host/egress"
	"dhow/host/image"
	"dhow/host/link"
	"dhow/host/usernet"
	"dhow/host/vm"
	"dhow/internal/errdefs"
	"dhow/internal/steps"
	"dhow/proto/control"
)

// life is one boot: what it made, until the machine has ended.
type life struct {
	config   machineConfig
	settings config.Settings
	image    *image.Image
	verified chan error // the image's digests; one value
	key      []byte
	network  *usernet.Network
	machine  vm.Machine
	link     *link.Link
	welcome  control.Welcome

	asked time.Time     // when the boot was asked for
	hang  time.Duration // what the agent gets to answer if the machine is emulated; 0: as any
	ready time.Time     // when the agent had answered
	steps []client.BootStep

	ctx    context.Context // ends with the machine
	cancel context.CancelFunc
	wg     sync.WaitGroup // the goroutines of this boot

	unlinked chan struct{} // closed when the link has ended
	gone     chan struct{} // closed when the machine has ended and the state says so

	once sync.Once
	mu   sync.Mutex
	err  error // why we ended the machine ourselves
}

// bootOnce is one try of bootLife. If that ends with a *hungError, the life that
// it returns tells whether the machine has gone.
func bootOnce(ctx context.Context, c machineConfig, asked time.Time, hang time.Duration, progress func(string)) (*life, error) {
	l := &life{config: c, asked: asked, hang: hang, verified: make(chan error, 1), unlinked: make(chan struct{}), gone: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	list := []steps.Step{
		{Name: "finding the VM image", Do: l.findImage, Undo: l.forgetImage},
		{Name: "preparing the data disk", Do: l.prepareDisk},
		{Name: "opening the network", Do: l.openNetwork, Undo: l.closeNetwork},
		{Name: "booting Linux", Do: l.startMachine, Undo: l.killMachine},
		{Name: "waiting for the agent", Do: l.awaitAgent},
	}
	for i := range list {
		do, name := list[i].Do, list[i].Name
		list[i].Do = func(ctx context.Context) error {
			progress(name)
			err := do(ctx)
			l.steps = append(l.steps, client.BootStep{Name: name, At: int64(time.Since(l.asked))})
			return err
		}
	}
	if err := steps.Run(ctx, list); err != nil {
		l.cancel()
		if l.machine == nil || l.machine.State() == vm.Stopped || l.machine.State() == vm.Created {
			l.wg.Wait()
		} // else the hypervisor did not let go, as the error says: don't hang with it
		return l, err
	}
	l.ready = time.Now()
	return l, nil
}

// findImage reads the settings, finds the image, and starts to verify it: that
// goes on beside the boot.
func (l *life) findImage(context.Context) (err error) {
	if l.settings, err = config.Load(l.config.Layout, l.config.Host); err != nil {
		return err
	}
	if l.image, err = l.config.Find(l.settings.Image); err != nil {
		return err
	}
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		l.verified <- l.image.Verify(l.ctx, filepath.Join(l.config.Layout.CacheDir(), "image.json"))
	}()
	return nil
}

func (l *life) forgetImage(context.Context) error {
	l.cancel()
	return nil
}

func (l *life) prepareDisk(context.Context) error {
	return ensureDisk(l.config.Layout.DataDisk(), l.settings.DiskSize)
}

func (l *life) openNetwork(context.Context) (err error) {
	l.network, err = usernet.Open(usernet.Config{
		Socket: filepath.Join(l.config.Layout.RunDir(), "net.sock"), DNS: l.settings.DNS, HostLoopback: l.settings.HostLoopback, Log: l.config.Log,
	})
	if err != nil {
		return err
	}
	l.run("network", l.network.Serve)
	return nil
}

func (l *life) closeNetwork(context.Context) error { return l.network.Close() }

// run keeps a server of this boot until the machine's end. A server that fails
// before is logged: what it carried is lost, the machine goes on.
func (l *life) run(name string, serve func(context.Context) error) {
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		if err := serve(l.ctx); err != nil {
			l.config.Log.Error("a server of the machine ended", "server", name, "error", err)
		}
	}()
}

func (l *life) startMachine(ctx context.Context) error {
	l.key = make([]byte, control.KeySize)
	_, _ = rand.Read(l.key) // never fails (crypto/rand)
	boot, err := json.Marshal(control.Boot{
		Protocol: control.Protocol, Version: l.config.Version, Key: l.key, Machine: l.config.Layout.Machine, Time: time.Now(),
		Network: l.network.Address(), RootCAs: hostRoots(ctx, l.config.Log), Debug: l.settings.Debug,
	})
	if err != nil {
		return err
	}
	driver := l.settings.Driver
	if driver == "" {
		driver = l.config.Driver
	}
	l.machine, err = l.config.New(driver, vm.Config{
		Name: l.config.Layout.Machine, Dir: l.config.Layout.MachineDir(),
		Kernel: l.image.Kernel(), Initrd: l.image.Initrd(), Root: l.image.Root(), Cmdline: l.image.Cmdline, Boot: boot,
		DataDisk: l.config.Layout.DataDisk(), CPUs: l.settings.CPUs, Memory: l.settings.Memory,
		MAC: usernet.GuestMAC, NetSocket: filepath.Join(l.config.Layout.RunDir(), "net.sock"), Log: l.config.Log,
	})
	if err != nil {
		return err
	}
	listeners := map[uint32]net.Listener{}
	closeAll := func() {
		for _, x := range listeners {
			_ = x.Close()
		}
	}
	// Listen before the start, so that no dial of the guest is lost.
	for _, port := range []uint32{control.PortReady, control.PortEgress} {
		if listeners[port], err = l.machine.Listen(port); err != nil {
			delete(listeners, port)
			closeAll()
			return errors.Join(err, l.machine.Kill())
		}
	}
	if err := l.machine.Start(ctx); err != nil {
		closeAll()
		return err
	}
	l.link = link.New(link.Config{Key: l.key, Version: l.config.Version, Dial: l.machine.Dial, Log: l.config.Log})
	l.run("egress", func(ctx context.Context) error {
		return egress.New(egress.Config{Key: l.key, Log: l.config.Log}).Serve(ctx, listeners[control.PortEgress])
	})
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		defer close(l.unlinked)
		if err := l.link.Run(l.ctx, listeners[control.PortReady]); errors.As(err, new(*link.VersionError)) {
			l.fail(errdefs.Wrap(errdefs.Conflict, err, "%v", err))
		}
	}()
	// A machine's end is the boot's.
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		<-l.machine.Done()
		l.cancel()
	}()
	return nil
}

func (l *life) killMachine(context.Context) error {
	err := l.machine.Kill()
	if err == nil {
		l.cancel()
		l.wg.Wait()
	}
	return err
}

// fail ends the machine for a reason of ours.
func (l *life) fail(err error) {
	l.mu.Lock()
	if l.err == nil {
		l.err = err
	}
	l.mu.Unlock()
	if kerr := l.machine.Kill(); kerr != nil {
		l.config.Log.Error("the machine could not be killed", "error", kerr)
	}
}

// awaitAgent waits for the agent's hello and for the image's digests.
func (l *life) awaitAgent(ctx context.Context) error {
	timeout, again := l.config.BootTimeout, false
	if l.hang > 0 && l.hang < timeout && emulated(l.machine) {
		timeout, again = l.hang, true
	}
	wait, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	welcome, err := l.link.Wait(wait)
	if err == nil {
		l.welcome = welcome
		return <-l.verified
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if wait.Err() == nil {
		// The link gave up: the machine is ending, by itself or by us.
		select {
		case <-l.machine.Done():
		case <-wait.Done():
		}
	}
	select {
	case <-l.machine.Done():
		<-l.unlinked // so that a reason of ours is known
	default:
	}
	// A damaged image explains any other failure.
	select {
	case verr := <-l.verified:
		if verr != nil && !errors.Is(verr, context.Canceled) {
			return verr
		}
	default:
	}
	if why := l.reason(); why != nil {
		return why
	}
	select {
	case <-l.machine.Done():
		if err := l.machine.Err(); err != nil {
			return errdefs.Wrap(errdefs.Unavailable, err, "%v", err)
		}
		return errdefs.New(errdefs.Unavailable, "the guest powered off before its agent answered%s", l.console())
	default:
	}
	err = errdefs.Wrap(errdefs.Unavailable, err, "the agent did not answer in %v%s", timeout, l.console())
	if again {
		return &hungError{err, whyHung(l.config.Layout.ConsoleLog())}
	}
	return err
}

// reason is why we ended the machine ourselves.
func (l *life) reason() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// console returns the console's last lines, for an error.
func (l *life) console() string {
	path := l.config.Layout.ConsoleLog()
	lines := lastLines(path, vm.ConsoleLines)
	if len(lines) == 0 {
		return fmt.Sprintf(" (nothing is on its console, %s)", path)
	}
	return fmt.Sprintf("; the last lines of its console (%s):\n  %s", path, strings.Join(lines, "\n  "))
}

// wait returns when the machine has ended and all of this boot is released,
// with the reason: nil for a power-off or a kill that was asked for.
func (l *life) wait() error {
	<-l.machine.Done()
	l.cancel()
	l.wg.Wait()
	l.once.Do(func() {
		if err := l.network.Close(); err != nil {
			l.config.Log.Warn("the machine's network did not close", "error", err)
		}
	})
	if err := l.reason(); err != nil {
		return err
	}
	return l.machine.Err()
}

// dial returns a connection to the agent's Docker API.
func (l *life) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	c, err := l.link.Dial(ctx, control.PortDocker)
	if errors.Is(err, context.DeadlineExceeded) {
		err = errdefs.Wrap(errdefs.Unavailable, err, "the agent in the machine does not answer")
	}
	return c, err
}

// describe fills in what a status says of a boot.
func (l *life) describe(s *client.Status) {
	s.Uptime, s.Boot = int64(time.Since(l.ready)), int64(l.ready.Sub(l.asked))
	s.Kernel = l.welcome.Kernel
	s.BootSteps = append([]client.BootStep(nil), l.steps...)
	for _, g := range l.welcome.Steps {
		s.BootSteps = append(s.BootSteps, client.BootStep{Name: "guest: " + g.Name, At: int64(g.At)})
	}
	if a, ok := l.machine.(vm.Accelerated); ok {
		s.Acceleration, _ = a.Acceleration()
	}
}

// lastLines returns the last n lines of a text file, without what would drive
// the reader's terminal; none if it cannot be read.
func lastLines(path string, n int) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	const most = 16 << 10
	buf := make([]byte, most)
	size, err := f.Seek(0, 2)
	if err != nil {
		return nil
	}
	got, _ := f.ReadAt(buf, max(0, size-most)) // io.EOF, or what could be read
	clean := strings.Map(func(r rune) rune {
		if r != '\n' && (r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0)) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(string(buf[:got]), "?"))
	clean = strings.TrimSpace(clean)
	if clean == "" {
		return nil
	}
	lines := strings.Split(clean, "\n")
	return lines[max(0, len(lines)-n):]
}
