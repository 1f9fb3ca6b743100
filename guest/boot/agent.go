//go:build linux

package boot

import (
	"bufio"
	"errors"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A supervisor starts the agent and starts it again whenever it ends.
type supervisor struct {
	log    *kmsg
	reaper *reaper
	path   string
	boot   []byte   // content of /boot.json, the agent's standard input
	env    []string // beyond the base
	cgroup string   // directory; "" = init's own

	backoff backoff
	sleep   func(time.Duration, <-chan struct{}) // until then or until stop
}

// A backoff says how long to wait before the next start. The first death in a
// while costs nothing; after that it doubles from first to max, and a life of at
// least healthy forgets it all.
type backoff struct {
	first, max, healthy time.Duration
	next                time.Duration
	failed              bool
}

func (b *backoff) after(life time.Duration) time.Duration {
	if life >= b.healthy {
		b.failed, b.next = false, 0
	}
	switch {
	case !b.failed:
		b.failed = true
		return 0
	case b.next == 0:
		b.next = b.first
	default:
		b.next = min(b.next*2, b.max)
	}
	return b.next
}

// agentBackoff are the agent's delays.
var agentBackoff = backoff{first: 100 * time.Millisecond, max: 5 * time.Second, healthy: 10 * time.Second}

// baseEnv is every process's environment.
var baseEnv = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/run/dhow", "LANG=C.UTF-8", "GOTRACEBACK=all"}

// run supervises until stop is closed: then the agent gets SIGTERM, and after
// grace SIGKILL. It returns when the agent has ended. started is called with
// each life's pid, once it runs.
func (s *supervisor) run(stop <-chan struct{}, grace time.Duration, started func(pid int)) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		born := uptime()
		pid, done, err := s.start()
		if err != nil {
			s.log.error("the agent cannot be started: %v", err)
		} else {
			started(pid)
			select {
			case e := <-done:
				s.log.error("the agent %v after %v", e, (uptime() - born).Round(time.Millisecond))
			case <-stop:
				_ = unix.Kill(pid, unix.SIGTERM)
				t := time.NewTimer(grace)
				select {
				case <-done:
				case <-t.C:
					s.log.error("the agent did not stop within %v and is killed", grace)
					_ = unix.Kill(pid, unix.SIGKILL)
					<-done
				}
				t.Stop()
				return
			}
		}
		if d := s.backoff.after(uptime() - born); d > 0 {
			s.log.notice("starting the agent again in %v", d)
			s.sleep(d, stop)
		}
	}
}

// sleepUntil waits for d or for stop.
func sleepUntil(d time.Duration, stop <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-stop:
	}
}

// start starts one life of the agent.
func (s *supervisor) start() (pid int, done <-chan exit, err error) {
	stdin, err := memfd("boot", s.boot)
	if err != nil {
		return 0, nil, err
	}
	defer stdin.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return 0, nil, err
	}
	defer w.Close()
	attr := &syscall.ProcAttr{
		Dir:   "/",
		Env:   append(append([]string{}, baseEnv...), s.env...),
		Files: []uintptr{stdin.Fd(), w.Fd(), w.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if s.cgroup != "" {
		fd, err := unix.Open(s.cgroup, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			s.log.error("the agent runs outside of its control group: %v", err)
		} else {
			defer unix.Close(fd)
			attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, fd
		}
	}
	pid, done, err = s.reaper.start([]string{s.path}, attr)
	if err != nil {
		r.Close()
		return 0, nil, err
	}
	if err := writeFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", "-900"); err != nil {
		s.log.error("agent: %v", err)
	}
	go s.log.copyLines("dhow-agent", r) // ends when the agent and all who got its output have ended
	return pid, done, nil
}

// memfd is a file in memory that holds data, positioned at its start.
func memfd(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err = f.Write(data); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// At most linesBurst lines in linesPeriod go to the console: each costs the
// machine time on an emulated serial port.
const (
	linesBurst  = 400
	linesPeriod = 5 * time.Second
)

// A lineLimit counts lines in periods.
type lineLimit struct {
	start   time.Duration
	n, lost int
}

// take says whether a line at now may pass, and how many were lost before it.
func (l *lineLimit) take(now time.Duration) (pass bool, lost int) {
	if l.n == 0 || now-l.start >= linesPeriod {
		lost = l.lost
		*l = lineLimit{start: now}
	}
	l.n++
	if l.n > linesBurst {
		l.lost++
		return false, 0
	}
	return true, lost
}

// copyLines sends each line that r gives to the console, and closes r at its
// end.
func (k *kmsg) copyLines(who string, r *os.File) {
	defer r.Close()
	_ = k.guard(who, func() error {
		var limit lineLimit
		b := bufio.NewReaderSize(r, 8192)
		for {
			line, err := b.ReadSlice('\n') // a longer line comes in parts
			for len(line) > 0 && (line[len(line)-1] == '\n' || line[len(line)-1] == '\r') {
				line = line[:len(line)-1]
			}
			if len(line) > 0 {
				pass, lost := limit.take(uptime())
				if lost > 0 {
					k.notice("%d lines of %s were dropped", lost, who)
				}
				if pass {
					k.line(levelNotice, who, string(line))
				}
			}
			if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
				return nil // end of file: the writer has ended
			}
		}
	})
}

// runTool is a tool that runs a program of the image and sends its output to
// the console.
func runTool(log *kmsg, r *reaper) tool {
	return func(argv ...string) (int, error) {
		null, err := os.Open("/dev/null")
		if err != nil {
			return 0, err
		}
		defer null.Close()
		pr, pw, err := os.Pipe()
		if err != nil {
			return 0, err
		}
		_, done, err := r.start(argv, &syscall.ProcAttr{
			Dir: "/", Env: baseEnv, Files: []uintptr{null.Fd(), pw.Fd(), pw.Fd()},
		})
		pw.Close()
		if err != nil {
			pr.Close()
			return 0, err
		}
		log.copyLines(argv[0][1+lastSlash(argv[0]):], pr)
		e := <-done
		if e.status.Signaled() {
			return 0, errors.New(argv[0] + " " + e.String())
		}
		return e.status.ExitStatus(), nil
	}
}

func lastSlash(s string) int {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == '/' {
			return i
		}
	}
	return -1
}
