//go:build linux

package engine

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"

	"dhow/internal/errdefs"
)

// clockTick is the kernel's unit of times in /proc (sysconf(_SC_CLK_TCK), 100
// on every architecture that Go runs on).
const clockTick = 10 * time.Millisecond

var topTitles = []string{"UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"}

// ContainerTop lists a container's processes in the format of `ps -ef`, read
// from /proc. Other formats would need a ps in the machine, which has none.
func (e *Engine) ContainerTop(ctx context.Context, id string, psArgs []string) (container.TopResponse, error) {
	none := container.TopResponse{}
	if a := strings.Join(psArgs, " "); a != "" && a != "-ef" {
		return none, errdefs.New(errdefs.Unimplemented, "ps options other than -ef are not supported by dhow: %s", a)
	}
	b, err := e.get(id)
	if err != nil {
		return none, err
	}
	b.mu.Lock()
	task := b.task
	b.mu.Unlock()
	if task == nil {
		return none, notRunning(b.id)
	}
	pids, err := task.Processes()
	if err != nil {
		return none, err
	}
	out := container.TopResponse{Titles: topTitles, Processes: [][]string{}}
	now := time.Now()
	for _, pid := range pids {
		row, err := psRow("/proc", pid, e.o.BootTime, now)
		if err != nil {
			continue // it ended meanwhile
		}
		out.Processes = append(out.Processes, row)
	}
	e.event(b, events.ActionTop, nil)
	return out, nil
}

// psRow is one process in the format of `ps -ef`.
func psRow(proc string, pid int, boot, now time.Time) ([]string, error) {
	dir := proc + "/" + strconv.Itoa(pid)
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return nil, err
	}
	// pid (comm) state ppid pgrp session tty_nr tpgid flags minflt cminflt majflt
	// cmajflt utime stime cutime cstime … starttime; comm may hold anything.
	end := bytes.LastIndexByte(raw, ')')
	begin := bytes.IndexByte(raw, '(')
	if begin < 0 || end < begin {
		return nil, fmt.Errorf("%s/stat is malformed", dir)
	}
	f := strings.Fields(string(raw[end+1:]))
	if len(f) < 20 {
		return nil, fmt.Errorf("%s/stat is malformed", dir)
	}
	num := func(i int) int64 { n, _ := strconv.ParseInt(f[i], 10, 64); return n }
	cpu := time.Duration(num(11)+num(12)) * clockTick
	started := boot.Add(time.Duration(num(19)) * clockTick)
	cmd := string(raw[begin : end+1])
	if line, err := os.ReadFile(dir + "/cmdline"); err == nil && len(line) > 0 {
		cmd = strings.TrimRight(strings.ReplaceAll(string(line), "\x00", " "), " ")
	} else {
		cmd = "[" + strings.Trim(cmd, "()") + "]"
	}
	share := int64(0)
	if age := now.Sub(started); age > 0 {
		share = min(99, int64(cpu*100/age))
	}
	stime := started.Local().Format("15:04")
	if now.Sub(started) >= 24*time.Hour {
		stime = started.Local().Format("Jan02")
	}
	s := int64(cpu / time.Second)
	return []string{
		userName(int(st.Uid)), strconv.Itoa(pid), f[1], strconv.FormatInt(share, 10), stime, ttyName(num(4)),
		fmt.Sprintf("%02d:%02d:%02d", s/3600, s/60%60, s%60), cmd,
	}, nil
}

// userName names what the machine itself has a name for: root.
func userName(uid int) string {
	if uid == 0 {
		return "root"
	}
	return strconv.Itoa(uid)
}

// ttyName names a terminal by its device number (proc_pid_stat(5)).
func ttyName(nr int64) string {
	if nr == 0 {
		return "?"
	}
	major := nr >> 8 & 0xfff
	minor := nr&0xff | nr>>12&0xfff00
	if major >= 136 && major <= 143 {
		return "pts/" + strconv.FormatInt((major-136)<<8|minor, 10)
	}
	return strconv.FormatInt(major, 10) + ":" + strconv.FormatInt(minor, 10)
}
