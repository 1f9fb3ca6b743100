package cli

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"dhow/host/client"
	"dhow/host/config"

	dockercli "github.com/docker/cli/cli"
	"github.com/spf13/cobra"
)

func machineRm(e *engine) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rm [OPTIONS]",
		Short: "Remove the machine with all its images, containers and volumes",
		Args:  dockercli.NoArgs,
	}
	force := cmd.Flags().BoolP("force", "f", false, "Do not ask for confirmation")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		dir := e.layout.MachineDir()
		if _, err := os.Stat(dir); err != nil {
			return fmt.Errorf("there is no machine %q", e.layout.Machine)
		}
		if !*force {
			fmt.Fprintf(e.docker.Out(), "WARNING! This removes the machine %q with all its images, containers and volumes.\nAre you sure you want to continue? [y/N] ", e.layout.Machine)
			answer, _ := bufio.NewReader(e.docker.In()).ReadString('\n') // no answer is a no
			if !strings.EqualFold(strings.TrimSpace(answer), "y") {
				return dockercli.StatusError{Status: "the machine was not removed", StatusCode: 1}
			}
		}
		if err := e.quit(cmd.Context(), client.StopOptions{Force: true}); err != nil {
			return err
		}
		// With the lock no dhowd can start on files that are going away.
		lock, err := config.Lock(e.layout.LockFile())
		if err != nil {
			return fmt.Errorf("the machine was started again meanwhile: %w", err)
		}
		defer lock.Close()
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		fmt.Fprintln(e.docker.Out(), e.layout.Machine)
		return nil
	}
	return cmd
}
