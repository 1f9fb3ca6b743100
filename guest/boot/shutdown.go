//go:build linux

package boot

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// AgentGrace is how long the agent gets between SIGTERM and SIGKILL at
// power-off. It has stopped the containers before it asks for that; where
// somebody else asked, it takes its whole endTimeout (guest/agent) to do so.
const AgentGrace = 25 * time.Second

// killGrace is how long all other processes get.
const killGrace = 2 * time.Second

// shutdown ends everything in order and leaves the data disk clean; the agent
// has ended before. It returns only if the last call fails.
func shutdown(log *kmsg, r *reaper, cmd int) error {
	log.notice("stopping")
	_ = log.guard("shutdown", func() error {
		endProcesses(r)
		unix.Sync()
		if err := unmountData(dataDir); err != nil {
			log.error("unmount the data disk: %v", err)
		}
		return nil
	})
	return unix.Reboot(cmd)
}

// endProcesses ends every process but this one.
func endProcesses(r *reaper) {
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if unix.Kill(-1, sig) != nil { // ESRCH: there is none
			return
		}
		t := time.NewTimer(killGrace)
		select {
		case <-r.childless():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// unmountData unmounts all that is mounted at and below dir. What is busy even
// though every process has ended is made read-only, which leaves the file system
// as clean.
func unmountData(dir string) error {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range submounts(string(info), dir) {
		if err := unix.Unmount(p, 0); err != nil {
			if p == dir {
				rerr := unix.Mount("", p, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
				if rerr == nil {
					continue
				}
				err = errors.Join(err, rerr)
			} else if lerr := unix.Unmount(p, unix.MNT_DETACH); lerr == nil {
				continue
			}
			errs = append(errs, &os.PathError{Op: "unmount", Path: p, Err: err})
		}
	}
	return errors.Join(errs...)
}
