// Deliver one message with Go's own net/smtp. Standard input is the order (see test_go.py), standard output a report:
// {} or {"error": "…", "code": 550}. "helper" takes the path that most programs take, smtp.SendMail.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/smtp"
	"net/textproto"
	"os"
)

type order struct {
	Address, Form, CA       string
	Mechanism, User, Secret string
	From                    string
	To                      []string
	Raw                     []byte
	Helper, Verify          bool
}

type report struct {
	Error string `json:"error,omitempty"`
	Code  int    `json:"code,omitempty"`
}

// What the package does not bring, written as its users write it.
type login struct{ user, password string }

func (a login) Start(*smtp.ServerInfo) (string, []byte, error) { return "LOGIN", []byte(a.user), nil }

func (a login) Next(asked []byte, more bool) ([]byte, error) {
	if !more {
		return nil, nil
	}
	if string(asked) == "Username:" {
		return []byte(a.user), nil
	}
	return []byte(a.password), nil
}

type xoauth2 struct{ user, token string }

func (a xoauth2) Start(*smtp.ServerInfo) (string, []byte, error) {
	return "XOAUTH2", []byte("user=" + a.user + "\x01auth=Bearer " + a.token + "\x01\x01"), nil
}

func (a xoauth2) Next(_ []byte, more bool) ([]byte, error) {
	if more { // the server tells of the failure, and waits for an empty line
		return []byte{}, nil
	}
	return nil, nil
}

func (o order) auth(host string) smtp.Auth {
	switch o.Mechanism {
	case "PLAIN":
		return smtp.PlainAuth("", o.User, o.Secret, host)
	case "CRAM-MD5":
		return smtp.CRAMMD5Auth(o.User, o.Secret)
	case "LOGIN":
		return login{o.User, o.Secret}
	case "XOAUTH2":
		return xoauth2{o.User, o.Secret}
	}
	return nil
}

func (o order) connect(config *tls.Config) (*smtp.Client, error) {
	host, _, _ := net.SplitHostPort(o.Address)
	if o.Form == "implicit TLS" {
		connection, err := tls.Dial("tcp", o.Address, config)
		if err != nil {
			return nil, err
		}
		return smtp.NewClient(connection, host)
	}
	client, err := smtp.Dial(o.Address)
	if err == nil && o.Form == "STARTTLS" {
		err = client.StartTLS(config)
	}
	return client, err
}

func (o order) deliver(client *smtp.Client) error {
	if err := client.Mail(o.From); err != nil {
		return err
	}
	for _, address := range o.To {
		if err := client.Rcpt(address); err != nil {
			return err
		}
	}
	data, err := client.Data()
	if err != nil {
		return err
	}
	if _, err := data.Write(o.Raw); err != nil {
		return err
	}
	return data.Close()
}

func (o order) ask(client *smtp.Client) error {
	for _, step := range []func() error{client.Noop, func() error { return client.Verify(o.To[0]) }, client.Reset} {
		if err := step(); err != nil {
			return err
		}
	}
	return client.Quit()
}

func (o order) run() error {
	host, _, _ := net.SplitHostPort(o.Address)
	if o.Helper {
		return smtp.SendMail(o.Address, o.auth(host), o.From, o.To, o.Raw)
	}
	authorities, err := os.ReadFile(o.CA)
	if err != nil {
		return err
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(authorities)
	client, err := o.connect(&tls.Config{RootCAs: trusted, ServerName: host})
	if err != nil {
		return err
	}
	defer client.Close()
	if o.Mechanism != "" {
		if err := client.Auth(o.auth(host)); err != nil {
			return err
		}
	}
	if o.Verify {
		return o.ask(client)
	}
	if err := o.deliver(client); err != nil {
		return err
	}
	return client.Quit()
}

func main() {
	var o order
	if err := json.NewDecoder(os.Stdin).Decode(&o); err != nil {
		panic(err)
	}
	said := report{}
	if err := o.run(); err != nil {
		said.Error = err.Error()
		var refused *textproto.Error
		if errors.As(err, &refused) {
			said.Code = refused.Code
		}
	}
	answer, _ := json.Marshal(said)
	fmt.Println(string(answer))
}
