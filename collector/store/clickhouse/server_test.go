package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/storetest"
)

// shared is the server that the tests of this package use, each with a
// database of its own.
var shared *process

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "flowaudit-clickhouse-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if shared, err = start(dir); err != nil && !errors.Is(err, exec.ErrNotFound) {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if shared != nil {
		defer shared.stop()
	}
	return m.Run()
}

// process is a clickhouse-server of ours.
type process struct {
	cmd  *exec.Cmd
	port int
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

// start starts the server that is installed; exec.ErrNotFound if there is none.
func start(dir string) (*process, error) {
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
	p := &process{port: l.Addr().(*net.TCPAddr).Port}
	if err := l.Close(); err != nil {
		return nil, err
	}
	for name, text := range map[string]string{"config.xml": fmt.Sprintf(config, dir, p.port), "users.xml": users} {
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
	conn, err := clickhouse.Open(&clickhouse.Options{Addr: []string{fmt.Sprintf("127.0.0.1:%d", p.port)}, Auth: clickhouse.Auth{Username: "default", Password: "secret"}})
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

func (p *process) stop() {
	_ = p.cmd.Process.Kill() // it may have ended
	_ = p.cmd.Wait()
}

// url names a database of the server.
func (p *process) url(database string) string {
	return fmt.Sprintf("clickhouse://default:secret@127.0.0.1:%d/%s", p.port, database)
}

var databases atomic.Int64

// newDatabase is the URL of an empty database.
func newDatabase(t *testing.T) string {
	t.Helper()
	if shared == nil {
		if os.Getenv("CI") != "" {
			t.Fatal("clickhouse-server is not installed: make test installs it")
		}
		t.Skip("clickhouse-server is not installed: make test installs it")
	}
	return shared.url(fmt.Sprintf("test%d", databases.Add(1)))
}

func open(t *testing.T, url string, now func() time.Time) *Store {
	t.Helper()
	s, err := Open(t.Context(), Options{URL: url, Logger: slog.New(slog.DiscardHandler), Now: now, Pace: -1, Slice: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() }) // a test may have closed it
	return s
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Fixture {
		url := newDatabase(t)
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
	})
}
