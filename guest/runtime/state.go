//go:build linux

package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// State is what the file ID.json in the state directory holds: enough for a new
// agent to find the container again. That Pid still means the same process, it
// tells by that process being in Cgroup, whose name no other container ever has.
type State struct {
	ID     string `json:"id"`
	Pid    int    `json:"pid"`
	Cgroup string `json:"cgroup"` // path below the cgroup2 mount
}

// writeState records the container. The directory is on a tmpfs: nothing is
// synced, and a cut-off file can only be seen by an agent that died in between.
func (c *Container) writeState() error {
	b, err := json.Marshal(State{ID: c.id, Pid: c.pid, Cgroup: c.cgroup.RelPath()})
	if err != nil {
		return err
	}
	fd, err := unix.Openat(int(c.runtime.stateFD.Fd()), c.id+".json", unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o600)
	if err == nil {
		_, err = unix.Write(fd, b)
		err = errors.Join(err, unix.Close(fd))
	}
	if err != nil {
		return fmt.Errorf("write the state of container %s: %w", c.id, err)
	}
	return nil
}

func (c *Container) removeState() error {
	err := unix.Unlinkat(int(c.runtime.stateFD.Fd()), c.id+".json", 0)
	if err != nil && err != unix.ENOENT {
		return &os.PathError{Op: "unlink", Path: c.id + ".json", Err: err}
	}
	return nil
}
