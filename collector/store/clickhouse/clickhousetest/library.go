package clickhousetest

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// StartLibrary starts today's ClickHouse, which is a library that
// FLOWAUDIT_LIBCHDB names, behind test/chdb. The error is exec.ErrNotFound where
// it is not there.
func StartLibrary(dir string) (*Server, error) {
	library := os.Getenv("FLOWAUDIT_LIBCHDB")
	if library == "" {
		return nil, fmt.Errorf("start libchdb: %w", exec.ErrNotFound)
	}
	front := filepath.Join(dir, "chdb")
	if out, err := exec.Command("go", "build", "-o", front, "github.com/flowaudit/flowaudit/test/chdb").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build test/chdb: %w: %s", err, out)
	}
	data := filepath.Join(dir, "chdb-data")
	if err := os.Mkdir(data, 0o700); err != nil {
		return nil, err
	}
	s := &Server{o: Options{Dir: dir}, program: front, cmd: exec.Command(front, library, data, "127.0.0.1:0")}
	s.cmd.Dir, s.cmd.Stderr = data, os.Stderr // it would take another server's configuration from its directory
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	said, err := s.cmd.StdoutPipe()
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start test/chdb: %w", err)
	}
	address, err := bufio.NewReader(said).ReadString('\n')
	if err != nil {
		s.Kill()
		return nil, fmt.Errorf("start test/chdb: %w", err)
	}
	s.base = "http://" + strings.TrimSpace(address) + "/"
	return s, s.wait()
}
