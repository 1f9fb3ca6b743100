//go:build linux

package boot

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// initProcess is PID 1: what its goroutines share.
type initProcess struct {
	log    *kmsg
	steps  *timeline
	reaper *reaper

	stopOnce sync.Once
	stop     chan struct{} // closed: the machine goes down
	how      int           // argument of reboot(2), set before stop is closed
}

// Run is PID 1's life. It does not return: the machine is powered off when
// asked to, or when the boot cannot go on, the reason being on the console.
func Run() {
	i := &initProcess{
		log: &kmsg{}, steps: &timeline{}, reaper: newReaper(),
		stop: make(chan struct{}), how: unix.LINUX_REBOOT_CMD_POWER_OFF,
	}
	err := i.log.guard("init", i.run)
	if err != nil {
		i.log.error("the boot failed: %v", err)
	}
	if err := shutdown(i.log, i.reaper, i.how); err != nil {
		i.log.error("power off: %v", err)
	}
	select {} // PID 1 must not end: the kernel would panic
}

func (i *initProcess) run() error {
	i.steps.mark("kernel")
	sigs := make(chan os.Signal, 16)
	signal.Notify(sigs, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT, unix.SIGPWR)
	reaping := make(chan struct{})
	go func() {
		defer close(reaping)
		i.signals(sigs)
	}()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF) // ctrl-alt-del becomes SIGINT
	early, err := i.stage1()
	if err != nil {
		return err
	}
	return i.stage2(early)
}

// signals reaps and listens for the machine's end. It never returns: the
// process does not end.
func (i *initProcess) signals(sigs <-chan os.Signal) {
	for s := range sigs {
		if s == unix.SIGCHLD {
			_ = i.log.guard("reaper", func() error { i.reaper.reap(); return nil })
			continue
		}
		i.log.notice("%v", s)
		i.goDown(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
}

// goDown starts the machine's end; the first call decides how.
func (i *initProcess) goDown(how int) {
	i.stopOnce.Do(func() {
		i.how = how
		close(i.stop)
	})
}

// spawn runs f guarded in a goroutine; its error arrives on the channel.
func (i *initProcess) spawn(name string, f func() error) <-chan error {
	c := make(chan error, 1)
	go func() { c <- i.log.guard(name, f) }()
	return c
}

// answer is the control socket's table of verbs.
func (i *initProcess) answer(verb string) string {
	switch verb {
	case "poweroff":
		i.goDown(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case "reboot":
		i.goDown(unix.LINUX_REBOOT_CMD_RESTART)
	case "exits":
		return i.reaper.exits()
	default:
		return fmt.Sprintf("error: unknown request %q\n", verb)
	}
	return "ok\n"
}

// stage2 runs in the real root until the machine goes down.
func (i *initProcess) stage2(early *stage1Result) error {
	boot := early.boot
	if err := unix.Klogset(unix.SYSLOG_ACTION_CONSOLE_LEVEL, consoleLevel(boot.Debug)); err != nil {
		i.log.error("console level: %v", err)
	}
	mods, err := kernelModules()
	if err != nil {
		return err
	}
	// /run first: the data disk's format and the socket need it.
	if err := doMounts(rootMounts[:1]); err != nil {
		return err
	}
	if err := os.Mkdir(runDir, 0o755); err != nil {
		return err
	}
	mods.adopt(early.mods)
	if err := doMounts(rootMounts[1:]); err != nil {
		i.log.error("%v", err)
	}
	if err := <-early.link; err != nil {
		i.log.error("vsock: %v", err)
	}
	// The first memory cgroup makes the kernel patch its allocator's code. QEMU
	// before 8.1 can, emulating several CPUs, go on executing the breakpoint that
	// patching uses if another CPU runs that code meanwhile, and both then hang:
	// so nothing else of ours runs at that moment.
	if err := cgroups(); err != nil {
		i.log.error("%v", err)
	}
	data := i.spawn("data disk", i.dataDisk)
	network := i.spawn("network", func() error { return i.network(early.mods, boot.Network) })
	// None of these is worth giving up the machine for.
	for _, step := range []func() error{
		makeLinks,
		func() error { return setSysctls(sysctls) },
		setLimits,
		func() error { return unix.Sethostname([]byte(hostname(boot.Machine))) },
		func() error { return i.clock(boot.Time) },
		func() error { return os.WriteFile("/run/resolv.conf", []byte(resolvConf(boot.Network)), 0o644) },
	} {
		if err := step(); err != nil {
			i.log.error("%v", err)
		}
	}
	i.steps.mark("mounts")
	env := []string{}
	if err := <-data; err != nil {
		i.log.error("%v", err)
		env = append(env, "DHOW_DATA_ERROR="+err.Error())
	}
	i.steps.mark("data disk")
	if err := <-network; err != nil {
		i.log.error("network: %v", err)
	}
	i.steps.mark("network")
	sock, err := listenControl(socketPath)
	if err != nil {
		i.log.error("%s: %v", socketPath, err)
	} else {
		i.spawn("control socket", func() error { return serveControl(i.log, sock, i.answer) })
	}
	i.steps.mark("agent")
	s := &supervisor{
		log: i.log, reaper: i.reaper, path: "/sbin/dhow-agent", boot: early.raw,
		env: append(env, "DHOW_BOOT_STEPS="+i.steps.env()), cgroup: agentCgroup,
		backoff: agentBackoff, sleep: sleepUntil,
	}
	var once sync.Once
	var rest <-chan error
	s.run(i.stop, AgentGrace, func(int) {
		once.Do(func() { rest = i.spawn("after the start", func() error { return i.afterStart(mods, early.old) }) })
	})
	if rest != nil {
		<-rest // so that nothing is loaded from disks that are going away
	}
	return nil
}

// afterStart does what the agent's start need not wait for.
func (i *initProcess) afterStart(mods *modules, initramfs int) error {
	for _, name := range containerModules {
		select {
		case <-i.stop:
			return nil
		default:
		}
		if err := mods.Load(name); err != nil {
			i.log.error("%v", err) // containers that need it will say so
		}
	}
	err := emptyDir(initramfs)
	unix.Close(initramfs)
	if err != nil {
		i.log.error("free the initramfs: %v", err)
	}
	return nil
}

func (i *initProcess) dataDisk() error {
	dev := diskBySerial("/sys/block", serialData)
	if dev == "" {
		ev, err := openUevents()
		if err != nil {
			return err
		}
		defer ev.Close()
		path, err := waitDisk(ev, serialData, diskWait)
		if err != nil {
			return fmt.Errorf("the data disk is missing: %w", err)
		}
		dev = path[len("/dev/"):]
	}
	return dataDisk(i.log, runTool(i.log, i.reaper), "/dev/"+dev, dataDir, "/run")
}

func (i *initProcess) network(mods *modules, n *bootUplink) error {
	errs := []error{linkUp("lo")}
	if n != nil {
		if err := mods.Load(networkModules...); err != nil {
			errs = append(errs, err)
		} else {
			errs = append(errs, configure(*n))
		}
	}
	return errors.Join(errs...)
}

func (i *initProcess) clock(atStart time.Time) error {
	set, err := setClock(atStart)
	if set && err == nil {
		i.log.notice("the clock was set from the host's")
	}
	return err
}

// consoleLevel is the kernel's: what is below it is shown.
func consoleLevel(debug bool) int {
	if debug {
		return levelInfo + 1
	}
	return levelNotice + 1
}

// hostname makes a host name of a machine's name.
func hostname(machine string) string {
	if machine == "" || machine == "default" {
		return "dhow"
	}
	return "dhow-" + machine
}
