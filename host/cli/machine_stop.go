package cli

import (
	"fmt"

	dockercli "github.com/docker/cli/cli"
	"github.com/spf13/cobra"
)

func machineStop(e *engine) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "stop [OPTIONS]",
		Short: "Stop the containers and the machine",
		Long: "Stop the containers, the machine and dhowd. Nothing starts it again but a command of dhow's:\n" +
			"a program that watches the docker socket cannot.",
		Args: dockercli.NoArgs,
	}
	options := stopFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := e.quit(cmd.Context(), options()); err != nil {
			return err
		}
		fmt.Fprintln(e.docker.Out(), e.layout.Machine)
		return nil
	}
	return cmd
}
