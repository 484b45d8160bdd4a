//! Paired slices: references and candidate in turn, so that what drifts on the machine drifts for both.

use std::sync::Arc;
use std::time::Duration;

use service_kit::clock::{Clock, SystemClock};
use service_kit::time::to_micros;

use crate::child::{Measured, Server};
use crate::load::{Clients, Draw, Slice, closed_loop};
use crate::options::Options;
use crate::report::{Line, Report};
use crate::seed::Seeded;
use keysweep_proto::key::v1::VerifyCode;

/// A server under a load.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) server: Server,
    pub(crate) draw: Arc<Draw>,
}

impl Target {
    pub(crate) fn new(server: Server, draw: Draw) -> Self {
        Self { server, draw: Arc::new(draw) }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self.server {
            Server::Echo => "echo",
            Server::Select => "select",
            Server::Key => "verify",
        }
    }

    fn expected(&self) -> VerifyCode {
        if self.server == Server::Key { self.draw.expected() } else { VerifyCode::Valid }
    }
}

/// One database, the process that serves it, and connections to each of its servers.
pub(crate) struct Bench<'a> {
    pub(crate) options: &'a Options,
    pub(crate) seeded: &'a Seeded,
    pub(crate) measured: Measured,
    clients: [Clients; 3],
}

impl<'a> Bench<'a> {
    pub(crate) async fn start(options: &'a Options, seeded: &'a Seeded, more: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut settings = seeded.settings(0)?;
        settings.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        settings.extend(options.overrides()?);
        let measured = Measured::bench(&settings)?;
        let connect = |server| Clients::connect(measured.port(server), options.connections);
        let clients = [connect(Server::Echo).await?, connect(Server::Select).await?, connect(Server::Key).await?];
        Ok(Self { options, seeded, measured, clients })
    }

    pub(crate) fn clients(&self, server: Server) -> &Clients {
        &self.clients[server as usize]
    }

    /// Measures `candidate` between `references`, round by round, and adds a line to the report.
    pub(crate) async fn paired(
        &self,
        report: &mut Report,
        case: &str,
        in_flight: usize,
        references: &[Target],
        candidate: &Target,
    ) -> anyhow::Result<()> {
        let mut around: Vec<Vec<Slice>> = vec![Vec::new(); references.len()];
        let mut slices = Vec::new();
        for round in 0..=self.options.rounds {
            for (reference, slices) in references.iter().zip(&mut around) {
                let slice = self.slice(reference, in_flight).await?;
                report.slice(case, self.seeded.name(), in_flight, round, reference.name(), &slice);
                slices.push(slice);
            }
            if round < self.options.rounds {
                let slice = self.slice(candidate, in_flight).await?;
                report.slice(case, self.seeded.name(), in_flight, round, candidate.name(), &slice);
                slices.push(slice);
            }
        }
        let references = references.iter().map(Target::name).zip(around).collect();
        report.line(Line::new(case, self.seeded.name(), in_flight, slices, references));
        Ok(())
    }

    async fn slice(&self, target: &Target, in_flight: usize) -> anyhow::Result<Slice> {
        let times = (self.options.lead(), self.options.slice());
        let load = (&target.draw, target.expected());
        let slice = closed_loop(self.clients(target.server), in_flight, load, times, &self.measured).await?;
        if target.server == Server::Key {
            self.settle(self.options.settle()).await?;
        }
        Ok(slice)
    }

    /// Waits until every use so far is stored, but no longer than `patience`.
    pub(crate) async fn settle(&self, patience: Duration) -> anyhow::Result<()> {
        let now = to_micros(SystemClock.now());
        let patience = std::time::Instant::now() + patience;
        while self.seeded.flushed_through().await? < now && std::time::Instant::now() < patience {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}
