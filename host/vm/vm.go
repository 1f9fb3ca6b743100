package vm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"dhow/internal/errdefs"
)

// Config is one boot of one machine. It is not changed after New.
type Config struct {
	Name string // of the machine, for messages
	// Dir is a directory of the machine's own for sockets and console.log; the
	// driver makes it (mode 0700) if it is not there. Its path must be short:
	// unix socket paths are limited to about 104 bytes.
	Dir string

	// Kernel, Initrd and Root are files of the image. Root is the read-only
	// disk, with the serial number control.SerialRoot; "" is none.
	Kernel, Initrd, Root string
	Cmdline              string // kernel parameters beyond those that the driver itself needs
	// Boot is the content of /boot.json in the guest's initramfs. It holds the
	// boot's key: a driver keeps it in files of mode 0600, for as short as it can.
	Boot []byte
	// DataDisk is a raw file of the disk's full (sparse) size, with the serial
	// number control.SerialData; "" is none.
	DataDisk string

	CPUs   int   // at least 1
	Memory int64 // bytes

	MAC string // of the network device; "" is none
	// NetSocket is a unix stream socket that the user-mode network listens on
	// (4-byte big-endian length, then the frame); "" is none.
	NetSocket string

	Log *slog.Logger
}

// Validate says what is wrong with a Config, whatever the driver.
func (c Config) Validate() error {
	switch {
	case c.Dir == "":
		return errdefs.New(errdefs.Invalid, "the machine has no directory")
	case c.Kernel == "":
		return errdefs.New(errdefs.Invalid, "the machine has no kernel")
	case c.CPUs < 1:
		return errdefs.New(errdefs.Invalid, "the machine needs at least 1 CPU, not %d", c.CPUs)
	case c.Memory < 64<<20:
		return errdefs.New(errdefs.Invalid, "the machine needs at least 64 MiB of memory, not %d bytes", c.Memory)
	case (c.MAC == "") != (c.NetSocket == ""):
		return errdefs.New(errdefs.Invalid, "a network device needs both a MAC address and a socket")
	case c.Log == nil:
		return errdefs.New(errdefs.Invalid, "the machine has no log")
	}
	if c.MAC != "" {
		if _, err := net.ParseMAC(c.MAC); err != nil {
			return errdefs.Wrap(errdefs.Invalid, err, "%q is not a MAC address", c.MAC)
		}
	}
	return nil
}

// Machine is one virtual machine in its one life: created, started once,
// ended once. All methods are safe for concurrent use.
type Machine interface {
	// Start boots the machine and returns when the guest's CPUs run; it does not
	// wait for anything in the guest. If it fails, or ctx ends first, nothing is
	// left behind (no process, no socket, no file but the console's log), the
	// machine is Stopped, Done is closed and Err returns the same error. A second
	// call fails with class Conflict and changes nothing. ctx does not bound the
	// machine's life.
	//
	// Errors: Unavailable (the hypervisor is missing, too old or forbidden; the
	// sentence has the remedy), Invalid (the Config), Canceled, else Internal.
	Start(ctx context.Context) error

	// Kill ends the machine by force, as pulling the plug does, and waits for
	// Done. It is idempotent, also on a machine that was never started (which
	// can then not be started any more). A Start at work fails with class
	// Canceled. The error is of class Unavailable and means that the
	// hypervisor did not let go in time; Done is then still open.
	Kill() error

	// Done is closed when the machine has ended, for whatever reason, and all
	// that it held is released: the hypervisor's process is reaped, sockets are
	// closed and removed, the data disk is nobody's.
	Done() <-chan struct{}

	// Err returns why the machine ended, once Done is closed: nil if the guest
	// powered off or Kill was called, what Start returned if it failed, else an
	// *ExitError. It is nil before.
	Err() error

	// State returns the present state. It is Stopped before Done is seen closed.
	State() State

	// Dial connects to a vsock port of the guest. It fails with ErrNotRunning
	// unless the machine is Running, and with an error that wraps
	// syscall.ECONNREFUSED where nobody listens. While the guest has not
	// brought up its vsock device a Dial is refused or waits for it (until ctx
	// ends): let the guest dial first.
	//
	// The connection has CloseWrite() error, deadlines, and fails with a reset
	// when the machine ends.
	Dial(ctx context.Context, port uint32) (net.Conn, error)

	// Listen accepts connections that the guest dials to the host's port. It is
	// allowed from the moment the machine is created, so that no dial of the
	// guest is lost, and fails with ErrNotRunning once it has ended, or with
	// an error that wraps syscall.EADDRINUSE. When the machine ends, Accept returns
	// net.ErrClosed. Closing the listener frees the port and leaves the
	// connections that it accepted.
	Listen(port uint32) (net.Listener, error)
}

// Accelerated is a Machine that can say what executes the guest's
// instructions.
type Accelerated interface {
	// Acceleration returns "kvm", "vz" or "tcg" (software emulation), and
	// for the last a sentence that says why. Both are empty before it is
	// chosen, which Start does.
	Acceleration() (name, why string)
}

// Conn is what the connections of Dial and of Listen's listeners are.
type Conn interface {
	net.Conn
	// CloseWrite ends the stream towards the peer, which reads io.EOF; reading
	// goes on.
	CloseWrite() error
}

// ErrNotRunning is what Dial and Listen return in a state that forbids them.
var ErrNotRunning = errdefs.New(errdefs.Unavailable, "the machine is not running")

// ExitError is the end of a machine that nobody asked for: the guest's kernel
// panicked, or the hypervisor died.
type ExitError struct {
	Reason  string   // one clause, e.g. "the guest's kernel panicked"
	Status  string   // of the hypervisor's process, e.g. "signal: killed"; "" if there is none
	Stderr  string   // the hypervisor's own last words
	Console []string // the last lines of the guest's console
}

// Error returns one sentence, then the hypervisor's words and the console's
// lines, indented, for the log.
func (e *ExitError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "the machine ended unexpectedly: %s", e.Reason)
	if e.Status != "" {
		fmt.Fprintf(&b, " (%s)", e.Status)
	}
	if e.Stderr != "" {
		b.WriteString("\n  hypervisor: " + strings.ReplaceAll(e.Stderr, "\n", "\n  hypervisor: "))
	}
	for _, l := range e.Console {
		b.WriteString("\n  console: " + l)
	}
	return b.String()
}

// afterFailedAsk is how long Stop still waits for a power-off after ask failed.
const afterFailedAsk = time.Second

// Stop ends m in order: it asks the guest to power off (ask may be nil, then
// it just waits), waits for the end, and kills the machine when ctx ends first
// or when ask fails. It returns once the machine has ended: nil if that was by
// power-off; an error that wraps ctx's or ask's if it had to be killed, or
// Kill's if even that failed. An end by *ExitError is returned as is.
func Stop(ctx context.Context, m Machine, ask func(context.Context) error) error {
	var why error
	if ask != nil {
		asked, cancel := context.WithCancel(ctx)
		defer cancel()
		// A machine that ends while it is asked has obeyed, or is past asking.
		stop := make(chan struct{})
		go func() {
			defer close(stop)
			select {
			case <-m.Done():
				cancel()
			case <-asked.Done():
			}
		}()
		why = ask(asked)
		cancel()
		<-stop
	}
	wait := ctx
	if why != nil {
		// The answer may have been cut off by the very power-off it was about.
		var cancel context.CancelFunc
		wait, cancel = context.WithTimeout(ctx, afterFailedAsk)
		defer cancel()
	}
	select {
	case <-m.Done():
		return m.Err()
	case <-wait.Done():
		if why == nil {
			why = ctx.Err()
		}
	}
	if err := m.Kill(); err != nil {
		return errors.Join(err, why)
	}
	var exit *ExitError
	if err := m.Err(); errors.As(err, &exit) {
		return err
	}
	return errdefs.Wrap(errdefs.Unavailable, why, "the machine did not power off by itself and was killed")
}
