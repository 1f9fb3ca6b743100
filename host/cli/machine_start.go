package cli

import (
	"fmt"

	"dhow/host/client"

	dockercli "github.com/docker/cli/cli"
	"github.com/spf13/cobra"
)

func machineStart(e *engine) *cobra.Command {
	return &cobra.Command{
		Use:   "start",
		Short: "Start the machine",
		Long:  "Start the machine. It is never needed: any docker command starts the machine by itself.",
		Args:  dockercli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := client.EnsureDaemon(cmd.Context(), e.layout)
			if err != nil {
				return err
			}
			if err := e.start(cmd.Context(), c); err != nil {
				return err
			}
			fmt.Fprintln(e.docker.Out(), e.layout.Machine)
			return nil
		},
	}
}
