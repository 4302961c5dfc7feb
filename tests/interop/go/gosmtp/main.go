// Deliver one message with the client of emersion's go-smtp, and the mechanisms of go-sasl. Standard input is the
// order (see test_go.py), standard output a report: {} or {"error": "…", "code": 550}.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

type order struct {
	Address, Form, CA, Certificate string
	Mechanism, User, Secret        string
	From                           string
	To                             []string
	Raw                            []byte
	UTF8, RequireTLS, LMTP         bool
}

type report struct {
	Error string `json:"error,omitempty"`
	Code  int    `json:"code,omitempty"`
}

func (o order) auth() sasl.Client {
	host, port, _ := net.SplitHostPort(o.Address)
	number, _ := strconv.Atoi(port)
	switch o.Mechanism {
	case "PLAIN":
		return sasl.NewPlainClient("", o.User, o.Secret)
	case "LOGIN":
		return sasl.NewLoginClient(o.User, o.Secret)
	case "XOAUTH2":
		return sasl.NewXoauth2Client(o.User, o.Secret)
	case "OAUTHBEARER":
		return sasl.NewOAuthBearerClient(&sasl.OAuthBearerOptions{
			Username: o.User, Token: o.Secret, Host: host, Port: number,
		})
	case "EXTERNAL":
		return sasl.NewExternalClient(o.User)
	case "ANONYMOUS":
		return sasl.NewAnonymousClient(o.User)
	}
	return nil
}

func (o order) tls() (*tls.Config, error) {
	authorities, err := os.ReadFile(o.CA)
	if err != nil {
		return nil, err
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(authorities)
	host, _, _ := net.SplitHostPort(o.Address)
	config := &tls.Config{RootCAs: trusted, ServerName: host}
	if o.Certificate != "" {
		own, err := tls.LoadX509KeyPair(o.Certificate, o.Certificate)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{own}
	}
	return config, nil
}

func (o order) connect(config *tls.Config) (*smtp.Client, error) {
	if o.Form == "implicit TLS" {
		return smtp.DialTLS(o.Address, config)
	}
	if o.LMTP {
		connection, err := net.Dial("tcp", o.Address)
		if err != nil {
			return nil, err
		}
		return smtp.NewClientLMTP(connection, "localhost")
	}
	client, err := smtp.Dial(o.Address)
	if err == nil && o.Form == "STARTTLS" {
		err = client.StartTLS(config)
	}
	return client, err
}

func (o order) deliver(client *smtp.Client) error {
	if err := client.Mail(o.From, &smtp.MailOptions{UTF8: o.UTF8, RequireTLS: o.RequireTLS, Size: len(o.Raw)}); err != nil {
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

func (o order) run() error {
	config, err := o.tls()
	if err != nil {
		return err
	}
	client, err := o.connect(config)
	if err != nil {
		return err
	}
	defer client.Close()
	if o.Mechanism != "" {
		if err := client.Auth(o.auth()); err != nil {
			return err
		}
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
		var refused *smtp.SMTPError
		if errors.As(err, &refused) {
			said.Code = refused.Code
		}
	}
	answer, _ := json.Marshal(said)
	fmt.Println(string(answer))
}
