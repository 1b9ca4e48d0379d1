package clickhouse

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/storetest"
)

// servers are those that the tests of this package use, each test with a
// database of its own.
type servers struct {
	old   *process // Debian's clickhouse-server
	today *process // libchdb behind test/chdb
}

var shared servers

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "flowaudit-clickhouse-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	defer shared.stop()
	for name, start := range map[**process]func(string) (*process, error){&shared.old: startServer, &shared.today: startLibrary} {
		if *name, err = start(dir); err != nil && !errors.Is(err, exec.ErrNotFound) {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

func (s *servers) stop() {
	for _, p := range []*process{s.old, s.today} {
		if p != nil {
			p.stop()
		}
	}
}

// process is a server of ours.
type process struct {
	cmd  *exec.Cmd
	base string // of the URLs of its databases
}

const config = `<yandex>
<logger><level>warning</level><console>1</console></logger>
<listen_host>127.0.0.1</listen_host><tcp_port>%[2]d</tcp_port>
<path>%[1]s/data/</path><tmp_path>%[1]s/tmp/</tmp_path><user_files_path>%[1]s/files/</user_files_path><users_config>%[1]s/users.xml</users_config>
<default_profile>default</default_profile><default_database>default</default_database><mark_cache_size>67108864</mark_cache_size><timezone>UTC</timezone>
</yandex>
`

const users = `<yandex>
<profiles><default/></profiles><quotas><default/></quotas>
<users><default><password>secret</password><networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota></default></users>
</yandex>
`

// startServer starts the server that is installed; exec.ErrNotFound if there is none.
func startServer(dir string) (*process, error) {
	program, err := exec.LookPath("clickhouse-server")
	if err != nil {
		if program, err = exec.LookPath("/usr/sbin/clickhouse-server"); err != nil {
			return nil, fmt.Errorf("start clickhouse-server: %w", exec.ErrNotFound)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	p := &process{base: fmt.Sprintf("clickhouse://default:secret@127.0.0.1:%d/", port)}
	if err := l.Close(); err != nil {
		return nil, err
	}
	for name, text := range map[string]string{"config.xml": fmt.Sprintf(config, dir, port), "users.xml": users} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = exec.Command(program, "--config-file="+filepath.Join(dir, "config.xml"))
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a test that dies leaves nothing behind
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start clickhouse-server: %w", err)
	}
	if err := p.wait(); err != nil {
		p.stop()
		text, _ := os.ReadFile(filepath.Join(dir, "log")) // for the error
		return nil, fmt.Errorf("start clickhouse-server: %w: %s", err, text)
	}
	return p, nil
}

// wait waits until the server answers.
func (p *process) wait() error {
	options, err := clickhouse.ParseDSN(p.base + "default")
	if err != nil {
		return err
	}
	conn, err := clickhouse.Open(options)
	if err != nil {
		return err
	}
	defer conn.Close()
	for range 300 {
		if err = conn.Ping(context.Background()); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

// startLibrary starts today's ClickHouse, which is a library; exec.ErrNotFound
// if there is none.
func startLibrary(dir string) (*process, error) {
	library := os.Getenv("FLOWAUDIT_LIBCHDB")
	if library == "" {
		return nil, exec.ErrNotFound
	}
	front := filepath.Join(dir, "chdb")
	if out, err := exec.Command("go", "build", "-o", front, "github.com/flowaudit/flowaudit/test/chdb").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build test/chdb: %w: %s", err, out)
	}
	data := filepath.Join(dir, "chdb-data")
	if err := os.Mkdir(data, 0o700); err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(front, library, data, "127.0.0.1:0")}
	p.cmd.Dir, p.cmd.Stderr = data, os.Stderr // it would take the other server's configuration from its directory
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	said, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start test/chdb: %w", err)
	}
	address, err := bufio.NewReader(said).ReadString('\n')
	if err != nil {
		p.stop()
		return nil, fmt.Errorf("start test/chdb: %w", err)
	}
	p.base = "http://" + strings.TrimSpace(address) + "/"
	return p, p.wait()
}

func (p *process) stop() {
	_ = p.cmd.Process.Kill() // it may have ended
	_ = p.cmd.Wait()
}

var databases atomic.Int64

// newDatabase is the URL of an empty database.
func (p *process) newDatabase(t *testing.T) string {
	t.Helper()
	if p == nil {
		if os.Getenv("CI") != "" {
			t.Fatal("the server is not installed: make test installs it")
		}
		t.Skip("the server is not installed: make test installs it")
	}
	return p.base + fmt.Sprintf("test%d", databases.Add(1))
}

func open(t *testing.T, url string, now func() time.Time) *Store {
	t.Helper()
	s, err := Open(t.Context(), Options{URL: url, Logger: slog.New(slog.DiscardHandler), Now: now, Pace: -1, Slice: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	s.eager = true                      // slow machines must not see old edges
	t.Cleanup(func() { _ = s.Close() }) // a test may have closed it
	return s
}

func TestOldServer(t *testing.T) { storetest.Run(t, factory(shared.old)) }

func TestToday(t *testing.T) { storetest.Run(t, factory(shared.today)) }

func factory(p *process) storetest.Factory {
	return func(t *testing.T) storetest.Fixture {
		url := p.newDatabase(t)
		var passed atomic.Int64
		now := func() time.Time { return storetest.T0.Add(time.Duration(passed.Load())) }
		s := open(t, url, now)
		return storetest.Fixture{
			Store:   s,
			Advance: func(d time.Duration) { passed.Add(int64(d)) },
			Reopen: func(t *testing.T) store.Store {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				return open(t, url, now)
			},
		}
	}
}
