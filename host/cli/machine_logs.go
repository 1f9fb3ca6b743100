package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	dockercli "github.com/docker/cli/cli"
	"github.com/spf13/cobra"
)

func machineLogs(e *engine) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "logs [OPTIONS]",
		Short: "Print the machine's console, or the log of dhowd",
		Args:  dockercli.NoArgs,
	}
	daemon := cmd.Flags().Bool("daemon", false, "Print the log of dhowd instead of the machine's console")
	tail := cmd.Flags().IntP("tail", "n", -1, "Number of lines to show from the end (-1 for all)")
	cmd.RunE = func(*cobra.Command, []string) error {
		name := e.layout.ConsoleLog()
		if *daemon {
			name = e.layout.LogFile()
		}
		f, err := os.Open(name)
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("there is no log yet (%s): the machine was never started", name)
		}
		if err != nil {
			return err
		}
		defer f.Close()
		return copyTail(e.docker.Out(), f, *tail)
	}
	return cmd
}

// copyTail copies the last n lines of r, or all for a negative n.
func copyTail(w io.Writer, r io.Reader, n int) error {
	if n < 0 {
		_, err := io.Copy(w, r)
		return err
	}
	var last []string
	s := bufio.NewReader(r)
	for {
		line, err := s.ReadString('\n')
		if line != "" && n > 0 {
			if len(last) < n {
				last = append(last, line)
			} else {
				last = append(last[1:], line)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	for _, line := range last {
		if _, err := io.WriteString(w, line); err != nil {
			return err
		}
	}
	return nil
}
