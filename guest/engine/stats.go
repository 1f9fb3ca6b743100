//go:build linux

package engine

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"dhow/guest/runtime/cgroup"
	"dhow/internal/errdefs"
)

// ContainerStats calls emit with what a container uses: once, or every second
// until it stops or ctx ends. Rates come from two samples: the first one
// waits for a second unless oneShot.
func (e *Engine) ContainerStats(ctx context.Context, id string, stream, oneShot bool, emit func(container.StatsResponse) error) error {
	b, err := e.get(id)
	if err != nil {
		return err
	}
	if stream && oneShot {
		return errdefs.New(errdefs.Invalid, "cannot have stream=true and one-shot=true")
	}
	var last container.StatsResponse
	if !oneShot {
		if last, err = e.sample(ctx, b); err != nil {
			return err
		}
	}
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		if !oneShot && last.CPUStats.SystemUsage > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-b.gone:
				return nil
			case <-t.C:
			}
		}
		s, err := e.sample(ctx, b)
		if err != nil {
			return err
		}
		s.PreRead, s.PreCPUStats = last.Read, last.CPUStats
		if err := emit(s); err != nil {
			return err
		}
		if !stream {
			return nil
		}
		if s.CPUStats.SystemUsage == 0 {
			// It does not run: a client that watches is told so every second, as by dockerd.
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-b.gone:
				return nil
			case <-t.C:
			}
		}
		last = s
	}
}

// sample is what a container uses now; one that does not run uses nothing.
func (e *Engine) sample(ctx context.Context, b *box) (container.StatsResponse, error) {
	b.mu.Lock()
	task, name := b.task, b.rec.Name
	b.mu.Unlock()
	out := container.StatsResponse{ID: b.id, Name: "/" + name, OSType: "linux"}
	if task == nil {
		return out, nil
	}
	s, err := task.Stats(ctx)
	if err != nil {
		if errdefs.Is(err, errdefs.NotFound) || errors.Is(err, os.ErrNotExist) {
			return out, nil // it ended meanwhile
		}
		return out, err
	}
	system, err := systemCPU("/proc/stat")
	if err != nil {
		return out, err
	}
	memTotal, err := memoryTotal()
	if err != nil {
		return out, err
	}
	fillStats(&out, s, system, memTotal, e.o.CPUs)
	out.Networks = netStats("/proc/" + strconv.Itoa(task.Pid()) + "/net/dev")
	return out, nil
}

// fillStats puts a cgroup's counters into docker's form.
func fillStats(out *container.StatsResponse, s cgroup.Stats, system time.Duration, memTotal uint64, cpus int) {
	out.Read = s.Read.UTC()
	out.CPUStats = container.CPUStats{
		CPUUsage: container.CPUUsage{
			TotalUsage: uint64(s.CPU.Usage), UsageInUsermode: uint64(s.CPU.User), UsageInKernelmode: uint64(s.CPU.System),
		},
		SystemUsage: uint64(system), OnlineCPUs: uint32(cpus),
		ThrottlingData: container.ThrottlingData{
			Periods: s.CPU.Periods, ThrottledPeriods: s.CPU.Throttled, ThrottledTime: uint64(s.CPU.ThrottledTime),
		},
	}
	out.MemoryStats = container.MemoryStats{Usage: s.Memory.Usage, Limit: min(s.Memory.Limit, memTotal), Failcnt: s.Memory.OOMs, Stats: s.Memory.Stat}
	out.PidsStats = container.PidsStats{Current: s.Pids.Current, Limit: s.Pids.Limit}
	for _, io := range s.IO {
		out.BlkioStats.IoServiceBytesRecursive = append(out.BlkioStats.IoServiceBytesRecursive,
			container.BlkioStatEntry{Major: io.Major, Minor: io.Minor, Op: "read", Value: io.ReadBytes},
			container.BlkioStatEntry{Major: io.Major, Minor: io.Minor, Op: "write", Value: io.WriteBytes})
	}
}

// systemCPU is the time that all processors spent, as dockerd counts it: the
// first seven columns of /proc/stat.
func systemCPU(name string) (time.Duration, error) {
	raw, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	line, _, _ := bytes.Cut(raw, []byte("\n"))
	f := strings.Fields(string(line))
	if len(f) < 8 || f[0] != "cpu" {
		return 0, errors.New(name + " is malformed")
	}
	var sum int64
	for _, v := range f[1:8] {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return time.Duration(sum) * clockTick, nil
}

// netStats reads a network namespace's counters, the loopback's apart.
func netStats(name string) map[string]container.NetworkStats {
	raw, err := os.ReadFile(name)
	if err != nil {
		return nil
	}
	out := map[string]container.NetworkStats{}
	for line := range strings.Lines(string(raw)) {
		dev, rest, ok := strings.Cut(line, ":")
		f := strings.Fields(rest)
		if dev = strings.TrimSpace(dev); !ok || dev == "lo" || len(f) < 12 {
			continue
		}
		n := func(i int) uint64 { v, _ := strconv.ParseUint(f[i], 10, 64); return v }
		out[dev] = container.NetworkStats{
			RxBytes: n(0), RxPackets: n(1), RxErrors: n(2), RxDropped: n(3),
			TxBytes: n(8), TxPackets: n(9), TxErrors: n(10), TxDropped: n(11),
		}
	}
	return out
}
