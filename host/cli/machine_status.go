package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"dhow/host/client"
	"dhow/host/config"
	"dhow/internal/version"

	dockercli "github.com/docker/cli/cli"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

func machineStatus(e *engine) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status [OPTIONS]",
		Short: "Show the machine's state, sizes and files",
		Args:  dockercli.NoArgs,
	}
	format := cmd.Flags().String("format", "", `Print in another form ("json")`)
	steps := cmd.Flags().Bool("steps", false, "Show how long each step of the last start took")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := e.status(cmd.Context())
		if err != nil {
			return err
		}
		switch *format {
		case "json":
			enc := json.NewEncoder(e.docker.Out())
			enc.SetIndent("", "  ")
			return enc.Encode(s)
		case "":
			return printStatus(e.docker.Out(), s, *steps)
		}
		return dockercli.StatusError{Status: fmt.Sprintf("unknown format %q: use json", *format), StatusCode: 125}
	}
	return cmd
}

// status asks dhowd, or tells what is known without one: asking must not start
// anything.
func (e *engine) status(ctx context.Context) (client.Status, error) {
	c, ok, err := e.running(ctx)
	if err != nil {
		return client.Status{}, err
	}
	if ok {
		return c.Status(ctx)
	}
	s, err := config.Load(e.layout, config.ThisHost())
	if err != nil {
		return client.Status{}, err
	}
	return client.Status{
		Machine: e.layout.Machine, State: client.Stopped, Version: version.Version, Driver: s.Driver,
		CPUs: s.CPUs, Memory: s.Memory, DiskSize: s.DiskSize, DiskUsed: config.DiskUsed(e.layout.DataDisk()),
		DockerSocket: e.layout.DockerSocket(), ConsoleLog: e.layout.ConsoleLog(), Log: e.layout.LogFile(),
	}, nil
}

func printStatus(out io.Writer, s client.Status, steps bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(w, name+":\t"+format+"\n", args...) }
	row("Machine", "%s", s.Machine)
	state := string(s.State)
	if s.Step != "" {
		state += " (" + s.Step + ")"
	}
	row("State", "%s", state)
	if s.Error != "" {
		row("Error", "%s", s.Error)
	}
	if s.Driver != "" {
		row("Driver", "%s", s.Driver)
	}
	if s.Acceleration != "" {
		row("Acceleration", "%s", s.Acceleration)
	}
	row("CPUs", "%d", s.CPUs)
	row("Memory", "%s", units.BytesSize(float64(s.Memory)))
	row("Disk", "%s, %s used on this host", units.BytesSize(float64(s.DiskSize)), units.BytesSize(float64(s.DiskUsed)))
	if s.Uptime > 0 {
		row("Up for", "%s (boot took %s)", units.HumanDuration(time.Duration(s.Uptime)), time.Duration(s.Boot).Round(time.Millisecond))
	}
	if s.Kernel != "" {
		row("Kernel", "%s", s.Kernel)
	}
	if g := s.Guest; g != nil {
		row("Containers", "%d running", g.RunningContainers)
		row("Guest memory", "%s available of %s", units.BytesSize(float64(g.MemoryAvailable)), units.BytesSize(float64(g.MemoryTotal)))
		row("Guest disk", "%s used of %s", units.BytesSize(float64(g.DiskUsed)), units.BytesSize(float64(g.DiskTotal)))
	}
	row("Docker socket", "%s", s.DockerSocket)
	row("Console log", "%s", s.ConsoleLog)
	row("Log", "%s", s.Log)
	if steps {
		for _, b := range s.BootSteps {
			row("  "+b.Name, "%s", time.Duration(b.At).Round(time.Millisecond/10))
		}
	}
	return w.Flush()
}
