//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dhow/guest/agent"
	"dhow/internal/version"
	proto "dhow/proto/control"
)

func main() {
	o, err := options(os.Args[1:], os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, "dhow-agent:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if err := agent.Run(ctx, o); err != nil {
		o.Log.Error("the agent ends", "err", err)
		os.Exit(1)
	}
}

func options(args []string, stdin *os.File) (agent.Options, error) {
	o := agent.Options{Version: version.Version, Commit: version.Commit}
	f := flag.NewFlagSet("dhow-agent", flag.ContinueOnError)
	f.StringVar(&o.Root, "root", "/var/lib/dhow", "directory of all data")
	f.StringVar(&o.Run, "run", "", "directory for what does not outlive the machine (default /run/dhow, or ROOT/run with --socket)")
	f.StringVar(&o.Socket, "socket", "", "serve the Docker API on this unix socket instead of vsock")
	f.StringVar(&o.Enter, "enter", "/sbin/dhow-enter", "path of dhow-enter")
	f.StringVar(&o.Images, "images", "", "directory of image archives to load at the first start (default /usr/share/dhow/images in a machine)")
	f.StringVar(&o.CgroupRoot, "cgroup-root", "/sys/fs/cgroup", "mount point of cgroup2")
	f.StringVar(&o.CgroupParent, "cgroup-parent", "docker", "parent of the containers' cgroups, below the mount point")
	f.BoolVar(&o.Bridge, "bridge", false, "with --socket: make the bridge network in this network namespace")
	debug := f.Bool("debug", false, "log more")
	boot := f.Bool("boot", false, "read the boot's data from standard input even if it is a terminal")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.Socket == "" {
		if _, err := unix.IoctlGetTermios(int(stdin.Fd()), unix.TCGETS); err == nil && !*boot {
			return o, fmt.Errorf("no boot data on standard input: --socket serves the Docker API outside of a machine")
		}
		o.Boot = new(proto.Boot)
		var changed *json.UnmarshalTypeError
		err := json.NewDecoder(io.LimitReader(stdin, 16<<20)).Decode(o.Boot)
		if errors.As(err, &changed) && o.Boot.Protocol != proto.Protocol {
			err = nil // of another protocol the hello needs no more than the key
		}
		if err != nil {
			return o, fmt.Errorf("read the boot's data: %w", err)
		}
		if o.Images == "" {
			o.Images = "/usr/share/dhow/images"
		}
		*debug = *debug || o.Boot.Debug
	}
	if o.Run == "" {
		o.Run = "/run/dhow"
		if o.Socket != "" {
			o.Run = o.Root + "/run"
		}
	}
	o.Steps = steps(os.Getenv("DHOW_BOOT_STEPS"))
	o.DataError = os.Getenv("DHOW_DATA_ERROR")
	level := slog.LevelInfo
	if *debug {
		level = slog.LevelDebug
	}
	o.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	return o, nil
}

// steps reads init's name=ns,name=ns,… .
func steps(s string) (list []proto.Step) {
	for part := range strings.SplitSeq(s, ",") {
		name, ns, ok := strings.Cut(part, "=")
		if n, err := strconv.ParseInt(ns, 10, 64); ok && err == nil {
			list = append(list, proto.Step{Name: name, At: time.Duration(n)})
		}
	}
	return list
}
