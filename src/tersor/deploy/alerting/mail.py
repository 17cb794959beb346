"""Alerts as e-mail, over an encrypted connection unless the deployment says otherwise."""

from __future__ import annotations

import os
import smtplib
import ssl
from email.message import EmailMessage
from email.utils import formatdate, make_msgid

from tersor.core.errors import EngineError, MissingError
from tersor.deploy.alerting.plan import MailPlan

__all__ = ["Mail"]

TIMEOUT_S = 15.0


class Mail:
    """Where mail goes; MissingError where the environment does not hold the password."""

    def __init__(self, plan: MailPlan, timeout_s: float = TIMEOUT_S) -> None:
        self._plan, self._timeout_s = plan, timeout_s
        self._password = os.environ.get(plan.password_env, "") if plan.password_env else ""
        if plan.password_env and not self._password:
            raise MissingError(f"mail: the environment variable {plan.password_env} holds no password")
        self.shown = f"mail by {plan.host}"

    def send(self, subject: str, text: str) -> None:
        """Send one letter to all; EngineError where the server does not take it."""
        plan = self._plan
        letter = EmailMessage()
        letter["From"], letter["To"], letter["Subject"] = plan.sender, ", ".join(plan.to), _line(subject)
        letter["Date"], letter["Message-ID"] = formatdate(), make_msgid(domain=plan.sender.rpartition("@")[2])
        letter.set_content(text)
        try:
            with self._connected() as server:
                if plan.security == "starttls":
                    server.starttls(context=ssl.create_default_context())
                if plan.user:
                    server.login(plan.user, self._password)
                server.send_message(letter)
        except (OSError, smtplib.SMTPException) as error:
            code = f" {error.smtp_code}" if isinstance(error, smtplib.SMTPResponseException) else ""
            raise EngineError(f"{self.shown}: {type(error).__name__}{code}") from None

    def _connected(self) -> smtplib.SMTP:
        plan = self._plan
        if plan.security == "tls":
            context = ssl.create_default_context()
            return smtplib.SMTP_SSL(plan.host, plan.port, timeout=self._timeout_s, context=context)
        return smtplib.SMTP(plan.host, plan.port, timeout=self._timeout_s)


def _line(text: str) -> str:
    """A header is one line: a name with a line break in it would add headers."""
    return " ".join(text.split())[:200]
