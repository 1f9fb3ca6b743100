package cli

import (
	"fmt"

	"dhow/host/client"

	dockercli "github.com/docker/cli/cli"
	"github.com/spf13/cobra"
)

func machineRestart(e *engine) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restart [OPTIONS]",
		Short: "Stop the machine and start it again",
		Args:  dockercli.NoArgs,
	}
	options := stopFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := e.quit(cmd.Context(), options()); err != nil {
			return err
		}
		c, err := client.EnsureDaemon(cmd.Context(), e.layout)
		if err != nil {
			return err
		}
		if err := e.start(cmd.Context(), c); err != nil {
			return err
		}
		fmt.Fprintln(e.docker.Out(), e.layout.Machine)
		return nil
	}
	return cmd
}
