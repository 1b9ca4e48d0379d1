package collector

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/flowaudit/flowaudit/collector/rest"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// serveHTTP serves the services that people ask as JSON over HTTP until ctx ends.
func (c *collector) serveHTTP(ctx context.Context, certificates *tls.Config) error {
	handler, err := rest.Handler(rest.Interceptors{Unary: c.admission.unary, Stream: c.admission.stream},
		rest.Service{Desc: &flowauditv1.Query_ServiceDesc, Implementation: c.query()},
		rest.Service{Desc: &flowauditv1.Advice_ServiceDesc, Implementation: c.advice},
		rest.Service{Desc: &flowauditv1.Alerts_ServiceDesc, Implementation: c.alerts()},
		rest.Service{Desc: &flowauditv1.Evidence_ServiceDesc, Implementation: c.evidence()},
	)
	if err != nil {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	listener, err := net.Listen("tcp", c.Listen.HTTP)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", c.Listen.HTTP, err)
	}
	server := &http.Server{
		Handler: http.NewCrossOriginProtection().Handler(handler), TLSConfig: certificates, ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx }, // followers never end by themselves
	}
	stopped := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		defer close(stopped)
		deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = server.Shutdown(deadline) // what does not end in time is cut off
	})()
	c.Log.Info("collector answers over HTTP", "address", listener.Addr().String(), "tls", certificates != nil)
	if c.ListeningHTTP != nil {
		c.ListeningHTTP(listener.Addr())
	}
	if certificates != nil {
		err = server.ServeTLS(listener, "", "")
	} else {
		err = server.Serve(listener)
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	<-stopped
	return nil
}
