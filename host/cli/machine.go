package cli

import (
	"context"
	"time"

	"dhow/host/client"

	"github.com/docker/cli/cli/command"
	"github.com/spf13/cobra"
)

// machineCommand is `dhow machine`, the commands that docker does not have.
func machineCommand(e *engine) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "machine",
		Short: "Manage the machine that runs the containers",
		Args:  cobra.NoArgs,
		RunE:  command.ShowHelp(e.docker.Err()),
	}
	cmd.AddCommand(
		machineStart(e),
		machineStop(e),
		machineRestart(e),
		machineStatus(e),
		machineLogs(e),
		machineConfig(e),
		machineRm(e),
	)
	return cmd
}

// stopFlags are shared by the commands that stop the machine.
func stopFlags(cmd *cobra.Command) func() client.StopOptions {
	force := cmd.Flags().BoolP("force", "f", false, "Power off at once, without stopping the containers first")
	timeout := cmd.Flags().IntP("timeout", "t", 10, "Seconds that containers get to end before they are killed")
	return func() client.StopOptions {
		return client.StopOptions{Force: *force, Timeout: time.Duration(*timeout) * time.Second}
	}
}

// quit stops the machine and ends dhowd, if it runs.
func (e *engine) quit(ctx context.Context, o client.StopOptions) error {
	c, ok, err := e.running(ctx)
	if err != nil || !ok {
		return err
	}
	p := newProgress(e.docker.Err())
	defer p.clear()
	return c.Quit(ctx, o, func(step string) { p.show("Stopping the machine: " + step) })
}
