//go:build linux

package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// State is what state.json in a container's directory holds: enough for a new
// agent to find the container again, and to know that a process id still means
// the same process.
type State struct {
	ID        string `json:"id"`
	Pid       int    `json:"pid"`
	StartTime uint64 `json:"start_time"` // of the process, in clock ticks after boot (proc(5), stat field 22)
	Cgroup    string `json:"cgroup"`     // path below the cgroup2 mount
}

// writeState records the container. The directory is a tmpfs: nothing is
// synced.
func (c *Container) writeState(context.Context) error {
	start, err := startTime(c.pid)
	if err != nil {
		return err
	}
	b, err := json.Marshal(State{ID: c.id, Pid: c.pid, StartTime: start, Cgroup: c.cgroup.RelPath()})
	if err != nil {
		return err
	}
	name := filepath.Join(c.dir, "state.json")
	if err := os.WriteFile(name+".tmp", b, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".tmp", name)
}

// startTime reads field 22 of /proc/PID/stat.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field, the name in parentheses, can hold anything.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat is cut short", pid)
	}
	return strconv.ParseUint(string(f[19]), 10, 64)
}
